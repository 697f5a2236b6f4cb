"""How two runs of one program differ, layer by layer, and the causes of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.jobs.layer_differences.schema import DifferenceRow, RuleRow
from quantvm.layer_rules.facts import FACTS, in_words
from quantvm.verification.ties import TieCause

if TYPE_CHECKING:
    from quantvm.frontend import Layer

ArrayInt = Any


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
        self.add_noise(centred, steps)

    def add_noise(self, signal: ArrayInt, noise: ArrayInt) -> None:
        """Counts one image's energies, from which the SQNR is computed."""
        self.signal += float(np.square(signal, dtype=np.float64).sum())
        self.noise += float(np.square(noise, dtype=np.float64).sum())

    @property
    def is_exact(self) -> bool:
        """Whether all elements are equal."""
        return self.equal == self.n

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise; None if nothing differs, or all is zero."""
        return None if self.noise == 0 or self.signal == 0 else 10 * float(np.log10(self.signal / self.noise))

    def row(self) -> DifferenceRow:
        """Returns the counts as diff.json holds them."""
        return {
            "n": self.n,
            "equal": self.equal,
            "off_by_one": self.off_by_one,
            "max_steps": self.max_steps,
            "sqnr_db": self.sqnr_db,
        }


@dataclass(frozen=True)
class RuleCause:
    """The rules that give all integers of both sides.

    Attributes:
        reference, actual: (name of the side, the rule that it follows here, the rule that it should follow).
        facts: (fact, the reference's value, the other side's value) where the rules differ; empty if one of the rules
            is not made of facts.
    """

    reference: tuple[str, str, str]
    actual: tuple[str, str, str]
    facts: tuple[tuple[str, str | None, str | None], ...]

    @property
    def text(self) -> str:
        """What the report says."""
        sides = [_followed(*side) for side in (self.reference, self.actual)]
        if not self.facts:
            return f"rule {self.actual[1]}: {sides[0]}; {sides[1]}"
        names = " + ".join(FACTS[fact][0] for fact, _, _ in self.facts)
        values = [" + ".join(in_words(row[0], row[i]) for row in self.facts) for i in (1, 2)]
        return f"rule {names}: " + "; ".join(f"{side}: {value}" for side, value in zip(sides, values, strict=True))

    def row(self) -> RuleRow:
        """Returns the cause as diff.json holds it."""
        return {
            "reference": self.reference[1],
            "reference_said": self.reference[2],
            "actual": self.actual[1],
            "actual_said": self.actual[2],
            "facts": [{"fact": fact, "reference": e, "actual": a} for fact, e, a in self.facts],
        }


def _followed(side: str, rule: str, said: str) -> str:
    """Returns the name of a side, and the rule that it follows if the name does not say it."""
    if rule != said:
        return f"{side} ({rule}, not {said})"
    return side if side.split(":", 1)[-1] == rule else f"{side} ({rule})"


UNEXPLAINED = "unexplained: likely a bug"


@dataclass
class LayerCount:
    """One layer's differences: in the run as a whole, and computed from the reference's own inputs.

    Attributes:
        layer: the layer.
        whole: differences in the run as a whole.
        own: differences from the reference's inputs; None if these were not computed.
        rule: the rules that explain the own differences; None if none does.
        ties: set if all own differences lie at rounding ties, where the reference's order of sums decides.
        unchecked: why no cause could be looked for, if so.
        to_float: signal and noise of real values, if one side is the float model.
    """

    layer: Layer
    whole: DifferenceCount = field(default_factory=DifferenceCount)
    own: DifferenceCount | None = None
    rule: RuleCause | None = None
    ties: TieCause | None = None
    unchecked: str | None = None
    to_float: DifferenceCount | None = None

    def add(self, actual: ArrayInt, expected: ArrayInt) -> None:
        """Counts one image of the run as a whole."""
        self.whole.add(actual, expected, self.layer.q.zero_point)

    def add_own(self, actual: ArrayInt, expected: ArrayInt) -> None:
        """Counts one image, computed from the reference's inputs."""
        self.own = self.own or DifferenceCount()
        self.own.add(actual, expected, self.layer.q.zero_point)

    def add_real(self, integers: ArrayInt, real_f32: ArrayInt) -> None:
        """Counts one image of a side's integers against the float model's values."""
        self.to_float = self.to_float or DifferenceCount()
        dequantized = (integers.astype(np.float64) - self.layer.q.zero_point) * self.layer.q.scale
        self.to_float.add_noise(real_f32, dequantized - real_f32)

    @property
    def differs(self) -> bool:
        """Whether any element differs, in the whole run or alone."""
        return not self.whole.is_exact or (self.own is not None and not self.own.is_exact)

    @property
    def has_own(self) -> bool:
        """Whether there are differences from equal inputs."""
        return self.own is not None and not self.own.is_exact

    @property
    def cause(self) -> str | None:
        """The cause of the difference; None if there is no difference."""
        if not self.differs:
            return None
        if self.to_float is not None:
            return "quantization" if self.own is None or self.has_own else "inherited"
        if self.own is None:
            return "not computed alone"
        if not self.has_own:
            return "inherited"
        found = self.rule or self.ties
        return (self.unchecked or UNEXPLAINED) if found is None else found.text


def first_difference(counts: Sequence[LayerCount]) -> int | None:
    """Returns the number of the first layer, in order of execution, that differs; None if all are equal."""
    return next((i for i, count in enumerate(counts) if not count.whole.is_exact), None)
