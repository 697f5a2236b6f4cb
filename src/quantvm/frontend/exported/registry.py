"""Converters from operators of exported programs to Relax, keyed by qualified name with overload.

To add one:
 1. Write a function `(builder, *arguments)` whose parameters follow the op's schema. Tensors arrive as Relax
    expressions of their float values, or as `torch.Tensor` if they are constants of the program.
 2. Decorate it with `@register_exported("namespace::op.overload")`.
 3. Add a case to tests/frontend/exported_cases.py; a test fails if a registered converter has no case.

Operators without a converter are decomposed by PyTorch into others, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from quantvm.frontend.registry import Converter, registering

_CONVERTERS: dict[str, Converter] = {}
_QUALIFIED = re.compile(r"^[A-Za-z_0-9]+::[A-Za-z_0-9]+\.[A-Za-z_0-9]+$")


def register_exported(*names: str) -> Callable[[Converter], Converter]:
    """Returns a decorator that registers a converter for each qualified op name with its overload.

    Raises:
        ValueError: a name is not of the form `namespace::op.overload`, or has a converter already.
    """
    return registering(_CONVERTERS, names, _QUALIFIED, "'namespace::op.overload'")


def find_exported(name: str) -> Converter | None:
    """Returns the converter of a qualified op name with overload, or None."""
    return _CONVERTERS.get(name)


def exported_ops() -> tuple[str, ...]:
    """Returns the names of all ops of exported programs that have a converter of ours, sorted."""
    return tuple(sorted(_CONVERTERS))
