"""Checks of an option's value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from quantvm.storage.output_files import file_problem, folder_problem

Check = Callable[[Any], str | None]
"""Returns what is wrong with a value, such as `got 0, expected at least 1`, or None."""

file_to_write: Check = file_problem
folder_to_write: Check = folder_problem


def one_of(known: Sequence[str]) -> Check:
    """Returns a check that a word is a known one."""
    expected = " or ".join(known) if len(known) <= 4 else f"one of {', '.join(known)}"
    return lambda word: None if word in known else f"got '{word}', expected {expected}"


def some_of(known: Sequence[str], *, at_least_one: bool = False) -> Check:
    """Returns a check that words are known ones."""

    def check(words: Sequence[str]) -> str | None:
        if set(words) <= set(known) and (words or not at_least_one):
            return None
        return f"got '{','.join(words)}', expected one or more of {', '.join(known)}"

    return check


def at_least(least: int) -> Check:
    """Returns a check that a number is at least so great; for 0 the message says `0 or more`."""
    expected = f"at least {least}" if least else "0 or more"
    return lambda value: None if value >= least else f"got {value}, expected {expected}"


def each_at_least_1(values: Iterable[int]) -> str | None:
    """Checks that every number is at least 1."""
    wrong = [str(value) for value in values if value < 1]
    return f"got {', '.join(wrong)}, expected at least 1" if wrong else None


def within(least: float, most: float, what: str) -> Check:
    """Returns a check that a number is between two others."""
    return lambda value: None if least <= value <= most else f"got {value}, expected {what}"


def shape(sizes: Sequence[int]) -> str | None:
    """Checks the shape of a batch."""
    if len(sizes) >= 2 and min(sizes) >= 1:
        return None
    return f"got {','.join(map(str, sizes))}, expected sizes of at least 1, as 1,3,224,224"


def shapes(found: Iterable[Sequence[int]]) -> str | None:
    """Checks the shapes of batches; reports the first that is wrong."""
    return next((problem for sizes in found if (problem := shape(sizes)) is not None), None)


def colours(values: Sequence[float]) -> str | None:
    """Checks numbers for R, G and B."""
    return None if len(values) == 3 else _no_colours(values)


def colour_divisors(values: Sequence[float]) -> str | None:
    """Checks numbers for R, G and B that pixels are divided by."""
    return None if len(values) == 3 and all(values) else _no_colours(values)


def _no_colours(values: Sequence[float]) -> str:
    return f"got {','.join(map(str, values))}, expected three numbers, for R, G and B"


def policy_or_folder(policies: Sequence[str]) -> Check:
    """Returns a check that a text is one of some words, or names a folder."""

    def check(text: str) -> str | None:
        if text in policies or Path(text).expanduser().is_dir():
            return None
        return f"got '{text}', expected {', '.join(policies)} or a folder that exists"

    return check


def threads_of_environment() -> tuple[int | None, str | None]:
    """Returns the value of TVM_NUM_THREADS, and what is wrong with it."""
    text = os.environ.get("TVM_NUM_THREADS", "").strip()
    if not text:
        return None, None
    if not text.isdecimal() or int(text) < 1:
        return None, f"the environment has TVM_NUM_THREADS='{text}', expected a whole number of at least 1"
    return int(text), None


def resolve_threads(asked: int | None, physical_cores: int) -> int:
    """Returns the number of threads of both engines: as asked, else TVM_NUM_THREADS, else the physical cores."""
    return asked or threads_of_environment()[0] or physical_cores
