"""What the results of all jobs share: exit codes, and what run.json and bench.json begin with.

Percentages are 0..100, times in seconds, shares 0..1. ``None`` is "not known" or "not measured", never zero.
Fields may be added freely; if one is removed or changes its meaning, ``SCHEMA_VERSION`` goes up.
"""

from __future__ import annotations

from typing import Any, TypedDict

SCHEMA_VERSION = 1

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_MODELS_ERRORED = 3
EXIT_OUTPUT = 4
EXIT_INTERRUPTED = 130


class WeightsRow(TypedDict):
    """Where a model's weights came from."""

    source: str
    sha256: str | None


class DatasetRow(TypedDict):
    """The images that every model saw."""

    name: str
    root: str
    is_default: bool
    form: str  # in which the images lie: a name of `quantvm list forms`, "named-set" or "sorted-folders"
    labels: str  # the rule by which their classes were found
    summary: str  # how many images and classes there are, before a choice
    n_requested: int | None
    n_used: int
    n_bad: int  # images to evaluate or to calibrate on that could not be read and were left out
    bad: list[dict[str, str]]  # path and reason of each
    sha256: str  # of the list of image ids
    notes: list[str]


class CpuRow(TypedDict):
    """The processor that ran it."""

    model: str
    features: list[str]
    physical_cores: int


class ThreadsRow(TypedDict):
    """With how many threads the engines computed, or compiled code is to compute."""

    threads: int


class PyTorchRow(TypedDict):
    """Whose bits TVM reproduces: an engine of PyTorch; for a program that is for none, its kind, such as pt2e."""

    engine: str


class CompiledRow(PyTorchRow, ThreadsRow):
    """What code was compiled for."""

    target: str


class EnvironmentRow(ThreadsRow):
    """What a reader needs to judge, or to repeat, the run."""

    versions: dict[str, str | None]
    git: str | None
    platform: str
    cpu: CpuRow
    env: dict[str, str]


class HeadRow(TypedDict):
    """What run.json and bench.json begin with."""

    schema_version: int
    command: str
    started_at: str  # ISO 8601, UTC
    duration_s: float
    interrupted: bool
    config: dict[str, Any]
    environment: EnvironmentRow
    seed: int
    dataset: DatasetRow
