def save_repro(*a): raise NotImplementedError
