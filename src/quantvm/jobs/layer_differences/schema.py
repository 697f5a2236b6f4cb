"""What ``quantvm diff --json`` prints and diff.json holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_OK, CompiledRow


class DifferenceRow(TypedDict):
    """How many integers of a tensor differ, over all images."""

    n: int
    equal: int
    off_by_one: int
    max_steps: int
    sqnr_db: float | None  # None: nothing differs, or the tensor is all zero


class FactRow(TypedDict):
    """A fact in which two rules differ; None: the rule has no such step."""

    fact: str
    reference: str | None
    actual: str | None


class RuleRow(TypedDict):
    """The rules that give every integer of a layer's two sides, and the rules that the sides should follow."""

    reference: str
    reference_said: str
    actual: str
    actual_said: str
    facts: list[FactRow]


class LayerRow(TypedDict):
    """One layer; `own` is computed from the reference's inputs, and None if that is impossible."""

    index: int
    name: str
    op: str
    shape: list[int]
    scale: float
    zero_point: int
    whole: DifferenceRow
    own: DifferenceRow | None
    cause: str | None
    rule: RuleRow | None
    float_sqnr_db: float | None  # against the float model's values, if that is a side


class FusionRow(TypedDict):
    """A TVM side's outputs from fused code against those from the code that returns all layers."""

    side: str
    n: int
    equal: int
    max_abs_diff: float


class StageRow(TypedDict):
    """One stage of the waterfall; errors are of its outputs against those of fp32."""

    stage: str
    top1: float
    top5: float
    sqnr_db: float | None  # None: equal
    cosine: float
    mean_abs_diff: float
    top1_agreement: float  # with fp32, in percent


class LossRow(TypedDict):
    """What one step of the waterfall changes, in percentage points of accuracy."""

    step: str
    top1: float
    top5: float
    outputs_changed: float  # percent of raw outputs


class WaterfallRow(TypedDict):
    """From the float model to compiled int8 code."""

    images: int
    stages: list[StageRow]
    losses: list[LossRow]


class DiffRow(CompiledRow):
    """All of diff.json."""

    schema_version: int
    model: str
    reference: str
    actual: str
    images: list[str]
    layers: list[LayerRow]
    n_differing: int
    first: int | None  # index of the first layer that differs
    fusion: list[FusionRow]
    waterfall: WaterfallRow | None
    repro: str | None  # the file that was written
    repro_problem: str | None  # why none was written
    duration_s: float


@dataclass(frozen=True)
class DiffResult:
    """The result of one comparison: ``row`` is diff.json."""

    row: DiffRow

    @property
    def exit_code(self) -> int:
        """The process exit code: 1 if any layer differs or fusion changes an output, else 0."""
        fused = all(fusion["equal"] == fusion["n"] for fusion in self.row["fusion"])
        return EXIT_OK if fused and not self.row["n_differing"] else EXIT_CHECK_FAILED
