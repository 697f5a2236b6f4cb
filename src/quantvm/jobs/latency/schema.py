"""What bench.json holds. Its head is that of run.json; ``None`` is "not known" or "not measured", never zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from quantvm.report.schema import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MODELS_ERRORED,
    EXIT_OK,
    EXIT_OUTPUT,
    HeadRow,
    ThreadsRow,
    WeightsRow,
)

EngineStatus = Literal["measured", "failed", "missing", "error"]


class LatencyRow(TypedDict):
    """Statistics of the duration of a call, in milliseconds, over all rounds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    n: int  # calls
    n_rounds: int
    round_p50_ms: list[float]  # the median of each round, in order: shows a drift
    images_per_s: float  # from p50
    spread: float  # interquartile range / median
    spread_warning: bool


class EngineRow(TypedDict):
    """One engine on one model, batch size and thread count; times are None unless `status` is `measured`."""

    status: EngineStatus  # failed: its outputs are wrong; missing: not installed
    reason: str | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float | None
    n: int
    n_rounds: int
    round_p50_ms: list[float]
    images_per_s: float | None
    spread: float | None
    spread_warning: bool
    first_call_ms: float | None
    build_s: float | None  # quantizing, and writing the file that is then loaded
    import_s: float | None  # TVM: from the torch program to Relax
    compile_s: float | None  # TVM: from Relax to machine code; None if that was done earlier
    load_s: float | None
    artifact_bytes: int | None  # of the file that is loaded
    peak_rss_bytes: int | None  # of the worker process from its start
    inference_peak_rss_bytes: int | None  # from the warm-up on
    outputs_identical: int | None  # TVM: raw outputs with the same bits as the reference
    outputs_total: int | None
    cosine_to_float: float | None  # of all outputs with the float model's: shows a wildly wrong engine
    cosine_to_reference: float | None  # TVM: of its outputs with the reference's
    compiling_loss: float | None  # TVM: its distance from the reference / the reference's from the float model
    int8_mac_share: float | None


class ProfileCallRow(TypedDict):
    """One kernel call; shapes include the batch, in TVM's memory order (NHWC)."""

    layer: str  # module path in PyTorch with underscores, as far as known
    op: str
    kernel: str  # empty for an operator left in float
    in_shapes: list[list[int]]
    out_shape: list[int]
    macs: int  # in 8-bit integers, of all images; 0 if it is no contraction
    p50_ms: float  # includes the cost of instrumentation


class ProfileRow(TypedDict):
    """Where TVM's time goes; medians in milliseconds."""

    total_ms: float  # of the whole model, without instrumentation
    kernels_ms: float  # sum over the calls
    hook_ms: float  # the part of that which is instrumentation, estimated from a call that does nothing
    instrumented_ms: float  # of the whole model, with instrumentation
    n: int  # how often each call was timed
    calls: list[ProfileCallRow]  # in order of execution


class BenchModelRow(ThreadsRow):
    """All engines on one model, batch size and thread count."""

    name: str
    title: str
    flow: str  # how PyTorch quantized: eager, fx or pt2e
    batch: int
    weights: WeightsRow
    engines: dict[str, EngineRow]
    tvm_vs_best: float | None  # p50 of the best other engine over TVM's: above 1, TVM is faster
    profile: ProfileRow | None  # None: not asked for, or TVM did not run


class SkippedRow(TypedDict):
    """A model that was not measured at all."""

    name: str
    title: str
    status: Literal["skipped", "error"]
    reason: str
    remedy: str | None


class MeanRow(ThreadsRow):
    """The geometric mean of `tvm_vs_best` over the models of one setting."""

    batch: int
    n_models: int
    tvm_vs_best: float | None


class BenchRow(HeadRow):
    """All of bench.json."""

    reference: str | None  # the engine whose outputs TVM must give; None: TVM is not among the engines
    load_average: list[float]  # of the machine over the minute before the start, and before the end
    models: list[BenchModelRow]
    skipped: list[SkippedRow]
    means: list[MeanRow]


@dataclass(frozen=True)
class BenchResult:
    """The result of one benchmark of latency: ``bench`` is bench.json.

    Attributes:
        bench: all rows.
        named_engines: the engines that were asked for by name.
        output_failed: whether a model or an engine has no result because a file could not be written.
    """

    bench: BenchRow
    named_engines: tuple[str, ...] = ()
    output_failed: bool = False

    @property
    def exit_code(self) -> int:
        """The process exit code.

        130 interrupted, 1 TVM gave wrong bits, 4 temporary files could not be written, 3 an engine or a model errored,
        or an engine that was named is missing, else 0. An engine that is missing but was not named is no error.
        """
        rows = [(name, row) for model in self.bench["models"] for name, row in model["engines"].items()]
        if self.bench["interrupted"]:
            return EXIT_INTERRUPTED
        if any(row["status"] == "failed" for _, row in rows):
            return EXIT_CHECK_FAILED
        if self.output_failed:
            return EXIT_OUTPUT
        errored = any(row["status"] == "error" for _, row in rows)
        missing = any(row["status"] == "missing" and name in self.named_engines for name, row in rows)
        if errored or missing or any(model["status"] == "error" for model in self.bench["skipped"]):
            return EXIT_MODELS_ERRORED
        return EXIT_OK
