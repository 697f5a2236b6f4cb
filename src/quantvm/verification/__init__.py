"""Compiling verifies itself: the compiled code's outputs are compared with those of the model's own framework."""

from .compiling import compile_model as compile  # noqa: A004 - quantvm.compile is meant

__all__ = ["compile"]
