"""Families of operators that share facts, and how each family is computed."""

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
    """Operators that one function computes.

    Attributes:
        options: fact -> the values that it can have.
        evaluate: (operator, inputs, facts, environment, cache, select) -> integers. Inputs and results have PyTorch's
            logical shape; `cache` keeps intermediate results of one layer and image that several choices share;
            `select` are flat indices of the wanted elements, None for all.
        is_valid: whether a choice of facts can be computed at all.
        exact: (operator, inputs, cache) -> the result in steps of the output, in float64; given where evaluating all
            elements takes long. Rules mostly differ in elements that this result puts half-way between integers.
    """

    options: Mapping[str, tuple[str, ...]]
    evaluate: Evaluate
    is_valid: Callable[[Operator, Facts], bool] = lambda operator, facts: True
    exact: Callable[[Operator, Sequence[NDArray], dict[Any, Any]], NDArray] | None = None


_FAMILIES: dict[str, Family] = {}


def register_family(kinds: Sequence[str], family: Family) -> None:
    """Registers the family to which some kinds of operators belong."""
    for kind in kinds:
        if kind in _FAMILIES:
            raise ValueError(f"operator {kind} belongs to a family already")
        _FAMILIES[kind] = family


def family_of(kind: str) -> Family:
    """Returns the family of an operator."""
    return _FAMILIES[kind]
