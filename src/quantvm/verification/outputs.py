"""Compares a compiled model's outputs with its reference's: how many differ, by how much, and what equality proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Arrays = Sequence[np.ndarray]

_FEWEST_DISTINCT = 3


@dataclass
class Difference:
    """The comparison of all runs together.

    Attributes:
        n, different: the number of values, and of those with other bits.
        greatest: greatest difference of two finite values; inf where one is not finite, or shapes differ.
        first: where the first difference is, as a clause; None without one.
    """

    n: int = 0
    different: int = 0
    greatest: float = 0.0
    first: str | None = None
    _distinct: dict[int, set[bytes]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    def add(self, actual: Arrays, expected: Arrays, batch: int) -> None:
        """Counts one run."""
        if len(actual) != len(expected):
            self._wrong(f"the compiled code gives {len(actual)} outputs, the reference {len(expected)}", 1)
            return
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            self.n += e.size
            if a.shape != e.shape or a.dtype != e.dtype:
                text = f"output {i} is {a.dtype} {a.shape}, the reference's {e.dtype} {e.shape}"
                self._wrong(text, max(e.size, 1))
                continue
            self._watch(i, e)
            differ = ~same_bits(a, e)
            if not differ.any():
                continue
            at = tuple(int(k) for k in np.argwhere(differ)[0])
            self.different += int(differ.sum())
            with np.errstate(invalid="ignore", over="ignore"):
                apart = np.abs(a[differ].astype(np.float64) - e[differ].astype(np.float64))
            self.greatest = max(self.greatest, float(np.where(np.isfinite(apart), apart, np.inf).max()))
            text = f"output {i} at {list(at)} of a batch of {batch} is {a[at]:.9g}, the reference's {e[at]:.9g}"
            self.first = self.first or text

    def _wrong(self, text: str, count: int) -> None:
        self.different += count
        self.greatest = float("inf")
        self.first = self.first or text

    def _watch(self, index: int, e: np.ndarray) -> None:
        known = self._distinct.setdefault(index, set())
        self._sizes[index] = self._sizes.get(index, 0) + e.size
        if len(known) < _FEWEST_DISTINCT:
            known.update(value.tobytes() for value in np.unique(e)[:_FEWEST_DISTINCT])

    @property
    def degenerate(self) -> str | None:
        """Why equality proves little; None if it proves something."""
        for index, known in self._distinct.items():
            if len(known) < min(_FEWEST_DISTINCT, self._sizes[index]):
                values = "value" if len(known) == 1 else "values"
                return f"output {index} has only {len(known)} distinct {values} among {self._sizes[index]:,}"
        return None


def same_bits(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Returns where two arrays have the same bits; NaN equals every NaN."""
    if a.dtype.kind != "f":
        return a == e
    kind = np.dtype(f"u{a.dtype.itemsize}")
    bits = (np.ascontiguousarray(x).view(kind).reshape(x.shape) for x in (a, e))
    return np.equal(*bits) | (np.isnan(a) & np.isnan(e))


def moved(actual: Arrays, expected: Arrays) -> float:
    """Returns the Euclidean distance of two runs' outputs."""
    total = 0.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            return float("inf")
        total += float(np.square(a.astype(np.float64) - e.astype(np.float64)).sum())
    return float(np.sqrt(total)) if np.isfinite(total) else float("inf")


def are_close(actual: Arrays, expected: Arrays, within: float) -> bool:
    """Whether every difference is at most this share of the output's greatest value."""
    return all(
        a.shape == e.shape
        and np.allclose(a.astype(np.float64), e, rtol=0, atol=within * float(np.abs(e).max(initial=0)))
        for a, e in zip(actual, expected, strict=True)
    )
