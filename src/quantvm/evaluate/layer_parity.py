"""How two runs of one program differ, layer by layer, and which rule of rounding explains a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.report.diff_schema import DifferenceRow

if TYPE_CHECKING:
    from quantvm.frontend import Layer

ArrayInt = Any

RULES: Mapping[str, str] = {
    "fbgemm": "one float multiplication, the zero point added after rounding; float bias (FBGEMM)",
    "onednn": "two float multiplications, the zero point added before rounding (oneDNN)",
    "x86": "as onednn up to 100 groups, as fbgemm beyond",
    "qnnpack": "one float multiplication, the bias rounded to an integer (QNNPACK)",
    "integer": "a fixed-point multiplier, ties upward",
    "integer:to_even": "a fixed-point multiplier, ties to even",
    "integer:away": "a fixed-point multiplier, ties away from zero",
}
"""Ways to compute a layer that are tried on one that differs, and what is peculiar to each."""


@dataclass
class DifferenceCount:
    """Differences of one quantized tensor between two runs, summed over images.

    Attributes:
        n: elements.
        equal: of those, how many are equal.
        off_by_one: of those, how many differ by one step.
        max_steps: greatest difference, in steps.
        signal, noise: sums of squares of the expected values and of the differences, in steps from the zero point.
    """

    n: int = 0
    equal: int = 0
    off_by_one: int = 0
    max_steps: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, actual: ArrayInt, expected: ArrayInt, zero_point: int) -> None:
        """Counts one image; both are integers of one shape."""
        steps = np.abs(actual.astype(np.int32) - expected.astype(np.int32))
        self.n += steps.size
        self.equal += int(np.count_nonzero(steps == 0))
        self.off_by_one += int(np.count_nonzero(steps == 1))
        self.max_steps = max(self.max_steps, int(steps.max(initial=0)))
        centred = expected.astype(np.float64) - zero_point
        self.signal += float(np.dot(centred.ravel(), centred.ravel()))
        self.noise += float(np.dot(steps.ravel().astype(np.float64), steps.ravel()))

    @property
    def is_exact(self) -> bool:
        """Whether all elements are equal."""
        return self.equal == self.n

    def row(self) -> DifferenceRow:
        """Returns the counts as diff.json holds them."""
        sqnr_db = None if self.noise == 0 or self.signal == 0 else 10 * float(np.log10(self.signal / self.noise))
        return {
            "n": self.n,
            "equal": self.equal,
            "off_by_one": self.off_by_one,
            "max_steps": self.max_steps,
            "sqnr_db": sqnr_db,
        }


@dataclass
class LayerCount:
    """One layer's differences: in the run as a whole, and computed from the reference's own inputs."""

    layer: Layer
    whole: DifferenceCount = field(default_factory=DifferenceCount)
    own: DifferenceCount | None = None
    explained_by: list[str] | None = None
    """Rules that give all of the reference's integers, in the order in which they were tried; None: not tried."""

    def add(self, actual: ArrayInt, expected: ArrayInt) -> None:
        """Counts one image of the run as a whole."""
        self.whole.add(actual, expected, self.layer.q.zero_point)

    def add_own(self, actual: ArrayInt, expected: ArrayInt) -> None:
        """Counts one image, computed from the reference's inputs."""
        self.own = self.own or DifferenceCount()
        self.own.add(actual, expected, self.layer.q.zero_point)

    @property
    def cause(self) -> str | None:
        """What the difference comes from; None where there is none."""
        if self.whole.is_exact and (self.own is None or self.own.is_exact):
            return None
        if self.own is not None and self.own.is_exact:
            return "inherited"
        if self.explained_by is None:
            return "own"
        if not self.explained_by:
            return "unexplained: likely a bug"
        return f"rule {self.explained_by[0]}: {RULES[self.explained_by[0]]}"


def first_difference(counts: Sequence[LayerCount]) -> int | None:
    """Returns the number of the first layer, in order of execution, that differs; None if all are equal."""
    return next((i for i, count in enumerate(counts) if not count.whole.is_exact), None)
