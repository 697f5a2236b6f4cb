"""What ``quantvm tune --json`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from quantvm.report.schema import EXIT_INTERRUPTED, EXIT_OK, ThreadsRow


class TunedRow(ThreadsRow):
    """The fastest schedule of one convolution, which may be the cost model's."""

    shape: dict[str, Any]
    dot: str
    schedule: dict[str, int]
    time_us: float  # of one call for one image
    model_time_us: float  # the same for the schedule that the cost model chooses


class TuneRow(TypedDict):
    """The result of one search."""

    schema_version: int
    target: str
    mcpu: str
    threads: list[int]
    file: str
    asked: int  # convolutions times numbers of threads
    searched: int  # of those; fewer when it was interrupted
    gained: int  # how many of those are faster than the cost model's choice
    kept: int  # records that the file holds now
    found: list[TunedRow]


@dataclass(frozen=True)
class TuneResult:
    """The result of one search: ``row`` is what --json prints."""

    row: TuneRow
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """The process exit code: 130 if it was interrupted, else 0."""
        return EXIT_INTERRUPTED if self.interrupted else EXIT_OK
