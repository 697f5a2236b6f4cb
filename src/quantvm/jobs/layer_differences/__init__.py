"""`quantvm diff`: in which layer two computations differ, and why."""
