"""Families of operators that share facts: which there are, and how their members are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .facts import Facts
from .operator import Environment, Operator

Evaluate = Callable[[Operator, Sequence[NDArray], Facts, Environment, dict[Any, Any], NDArray | None], NDArray]


@dataclass(frozen=True)
class Family:
    """Operators that are computed by one function.

    Attributes:
        options: fact -> the values that can be switched to.
        evaluate: (operator, inputs, facts, environment, cache, select) -> integers. Inputs and results have PyTorch's
            logical shape; `cache` keeps what several choices share of one layer and image; `select` are flat indices of
            the elements that are wanted, None for all.
        is_valid: whether a choice of facts can be computed at all.
        exact: (operator, inputs, cache) -> the result in steps of the output as exactly as float64 has it, where
            evaluating all elements takes long: rules that differ do so where that lies half-way between integers.
    """

    options: Mapping[str, tuple[str, ...]]
    evaluate: Evaluate
    is_valid: Callable[[Operator, Facts], bool] = lambda operator, facts: True
    exact: Callable[[Operator, Sequence[NDArray], dict[Any, Any]], NDArray] | None = None


_FAMILIES: dict[str, Family] = {}


def register_family(kinds: Sequence[str], family: Family) -> None:
    """Registers the family of some kinds of operators."""
    for kind in kinds:
        if kind in _FAMILIES:
            raise ValueError(f"operator {kind} belongs to a family already")
        _FAMILIES[kind] = family


def family_of(kind: str) -> Family:
    """Returns the family of an operator."""
    return _FAMILIES[kind]
