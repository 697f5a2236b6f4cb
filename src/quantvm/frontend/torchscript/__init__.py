"""TorchScript -> Relax in QDQ form: eager and FX modules, traced and saved programs."""
