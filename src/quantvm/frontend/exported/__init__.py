"""Exported programs (PT2E, torchao) -> Relax in QDQ form."""
