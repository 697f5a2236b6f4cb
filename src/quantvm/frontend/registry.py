"""Converters from TorchScript operators to Relax, keyed by qualified name.

To add one:
 1. Write a function `(builder, *inputs)` whose parameters follow the op's schema; see the files beside this one.
 2. Decorate it with `@register_converter("namespace::op")`. The bare name is not enough: `quantized::linear` and
    `aten::linear` share it.
 3. Add a case to tests/frontend/test_converters.py, which fails if a registered converter has no case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Converter = Callable[..., Any]
_CONVERTERS: dict[str, Converter] = {}
_QUALIFIED = re.compile(r"^[A-Za-z_]\w*::\w+$")


def register_converter(*names: str) -> Callable[[Converter], Converter]:
    """Returns a decorator that registers a converter for each qualified op name.

    Raises:
        ValueError: a name is not of the form `namespace::op`, or has a converter already.
    """
    return registering(_CONVERTERS, names, _QUALIFIED, "'namespace::op', e.g. 'quantized::conv2d'")


def registering(
    converters: dict[str, Converter], names: Sequence[str], pattern: re.Pattern[str], form: str
) -> Callable[[Converter], Converter]:
    """Returns a decorator that adds a converter to a table under each name.

    Args:
        converters: the table.
        names: keys that the table does not have yet.
        pattern: matches every valid name.
        form: the form of a valid name, for the message.

    Raises:
        ValueError: a name is not of that form, or has a converter already.
    """
    for name in names:
        if not pattern.match(name):
            raise ValueError(f"converter name {name!r} is not of the form {form}")
        if name in converters:
            raise ValueError(f"{name} has a converter already: {converters[name].__qualname__}")

    def register(function: Converter) -> Converter:
        converters.update(dict.fromkeys(names, function))
        return function

    return register


def find_converter(name: str) -> Converter | None:
    """Returns the converter of a qualified op name, or None."""
    return _CONVERTERS.get(name)


def supported_ops() -> tuple[str, ...]:
    """Returns the qualified names of all ops that have a converter, sorted."""
    return tuple(sorted(_CONVERTERS))
