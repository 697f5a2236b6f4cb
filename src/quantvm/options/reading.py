"""How the text of the command line becomes an option's value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """One way to write a value on the command line.

    Attributes:
        typed: the type that the command line's parser checks; None: that of the option.
        read: returns the value of what was written; a ValueError says what is wrong with it.
        shown: returns a default as it would be written; None: the help does not show the default.
    """

    typed: Any = None
    read: Callable[[Any], Any] = lambda value: value
    shown: Callable[[Any], Any] = lambda default: None


def names(given: Iterable[str]) -> tuple[str, ...]:
    """Returns the names in several texts, each of which may hold several names separated by commas."""
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


def _numbers(given: Iterable[str]) -> tuple[int, ...]:
    found = names(given)
    wrong = [name for name in found if not name.isdecimal()]
    if wrong:
        raise ValueError(f"got '{', '.join(wrong)}', expected whole numbers")
    return tuple(int(name) for name in found)


def _reals(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"got '{text}', expected numbers as 0.5,0.5,0.5") from error


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"got '{text}', expected sizes as 1,3,224,224")
    return tuple(int(part) for part in parts)


def _shapes(given: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(_shape(text) for text in given)


def _listed(values: Iterable[Any]) -> str | None:
    return ",".join(map(str, values)) or None


PLAIN = Reading(shown=lambda default: default)
"""A value as it is."""

WORDS = Reading(list[str] | None, tuple)
"""Several words, one after the other."""

NAMES = Reading(list[str] | None, names)
"""A repeated option, each time with one name or several separated by commas."""

LISTED_NAMES = Reading(str | None, lambda text: names([text]), _listed)
"""Names separated by commas, in one option."""

NUMBERS = Reading(list[str] | None, _numbers)
"""Whole numbers as `NAMES`."""

REALS = Reading(str | None, _reals, _listed)
"""Numbers separated by commas, as 0.5,0.5,0.5."""

SHAPE = Reading(str | None, _shape)
"""The sizes of one tensor, as 1,3,224,224."""

SHAPES = Reading(list[str] | None, _shapes)
"""The sizes of several tensors, the option repeated for each."""
