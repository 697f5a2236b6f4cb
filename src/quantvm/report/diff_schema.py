"""What ``quantvm diff --json`` prints and diff.json holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_OK


class DifferenceRow(TypedDict):
    """How many integers of a tensor differ, over all images."""

    n: int
    equal: int
    off_by_one: int
    max_steps: int
    sqnr_db: float | None  # None: nothing differs, or the tensor is all zero


class LayerRow(TypedDict):
    """One layer; `own` is computed from the reference's inputs, None where that cannot be done."""

    index: int
    name: str
    op: str
    shape: list[int]
    scale: float
    zero_point: int
    whole: DifferenceRow
    own: DifferenceRow | None
    cause: str | None


class DiffRow(TypedDict):
    """All of diff.json."""

    schema_version: int
    model: str
    reference: str
    actual: str
    engine: str
    threads: int
    target: str
    images: list[str]
    layers: list[LayerRow]
    n_differing: int
    first: int | None  # index of the first layer that differs
    duration_s: float


@dataclass(frozen=True)
class DiffResult:
    """What one comparison gave: ``row`` is diff.json."""

    row: DiffRow

    @property
    def exit_code(self) -> int:
        """The process exit code: 1 if any layer differs, else 0."""
        return EXIT_CHECK_FAILED if self.row["n_differing"] else EXIT_OK
