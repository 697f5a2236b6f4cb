"""Arithmetic on sizes that may be symbolic: products, and the size that a reshape leaves open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tvm import tirx

MOST_ELEMENTS = (1 << 31) - 1
"""The most elements of one tensor, not counting dynamic sizes: kernels index within one image in 32 bits."""


def product(sizes: Sequence[Any]) -> Any:
    """Returns the product: an int, or a symbolic expression with its number last, as n*9."""
    number, factors = _factors(sizes)
    if not factors or number == 0:
        return number
    first, *others = factors.values()
    for factor in others:
        first = first * factor
    return first if number == 1 else first * number


def quotient(sizes: Sequence[Any], divisors: Sequence[Any]) -> Any | None:
    """Returns product(sizes) / product(divisors) if that is a whole number for any value of the symbols, else None."""
    number, factors = _factors(sizes)
    divisor, taken = _factors(divisors)
    if divisor == 0 or number % divisor:
        return None
    counts, taken_counts = _counted(factors), _counted(taken)
    if taken_counts - counts:
        return None
    left = counts - taken_counts
    names = {name: factor for (name, _), factor in factors.items()}
    return product([number // divisor, *(names[name] for name in left.elements())])


Factors = dict[tuple[str, int], Any]


def _counted(factors: Factors) -> Counter[str]:
    return Counter(name for name, _ in factors)


def _factors(sizes: Sequence[Any]) -> tuple[int, Factors]:
    """Returns the number and the symbolic factors of a product; any other expression is one factor."""
    number, factors = 1, Factors()

    def take(size: Any) -> None:
        nonlocal number
        if isinstance(size, int):
            number *= size
        elif isinstance(size, tirx.IntImm):
            number *= int(size)
        elif isinstance(size, tirx.Mul):
            take(size.a)
            take(size.b)
        else:
            name = str(size)
            factors[name, sum(known == name for known, _ in factors)] = size

    for size in sizes:
        take(size)
    return number, factors
