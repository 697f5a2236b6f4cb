"""What run.json and samples.parquet hold: one typed place that everything else reads.

Percentages are 0..100, times in seconds, shares 0..1. ``None`` is "not known" or "not measured", never zero.
A field is added freely; when one is removed or changes its meaning, ``SCHEMA_VERSION`` goes up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

SCHEMA_VERSION = 1

Status = Literal["passed", "failed", "mistrusted", "skipped", "unsupported", "error"]

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_MODELS_ERRORED = 3
EXIT_OUTPUT = 4
EXIT_INTERRUPTED = 130


class AccuracyRow(TypedDict):
    """Share of images whose label is the best, or among the five best, in percent."""

    top1: float
    top5: float


class WeightsRow(TypedDict):
    """Where a model's weights came from."""

    source: str
    sha256: str | None


class CalibrationRow(TypedDict):
    """On how many images the model was calibrated, and which; `n` is 0 when its weights brought their own ranges."""

    n: int
    source: str


class FirstImageRow(TypedDict):
    """The raw outputs of both engines on the first image, as the original benchmark prints them."""

    id: str
    torch_top5_labels: list[int]
    tvm_top5_labels: list[int]
    torch_top5_raw: list[float]
    tvm_top5_raw: list[float]
    max_abs_diff: float | None
    mean_abs_diff: float | None
    identical: int
    total: int


class GreatestDifferenceRow(TypedDict):
    """The raw output that differs most: which image, which class, and both values."""

    id: str
    index: int
    torch: float
    tvm: float


class ParityRow(TypedDict):
    """How the TVM outputs (actual) compare with the PyTorch outputs (expected) over all images."""

    raw_outputs_total: int
    raw_outputs_identical: int
    images_total: int
    images_identical: int
    max_abs_diff: float | None  # None: a difference is not finite
    mean_abs_diff: float | None
    max_lsb: int | None  # max_abs_diff in steps of the output's quantization; None: the step is not known
    greatest_difference: GreatestDifferenceRow | None  # None: all outputs are identical
    top1_agreement: float  # percent of the images
    first_image: FirstImageRow


class ModelRow(TypedDict):
    """One model of a run; the measured fields are None where `status` says that it was not measured."""

    name: str
    title: str
    status: Status
    reason: str | None
    remedy: str | None
    scheme: str
    engine: str
    flow: str
    reference: str | None  # what the row calls torch: PyTorch, ONNX Runtime; None: there is nothing to compare with
    preprocessing: dict[str, Any] | None  # resize, crop, interpolation, mean, std
    numerics: str  # what TVM follows in this row
    weights: WeightsRow | None
    calibration: CalibrationRow | None
    n_images: int
    fp32: AccuracyRow | None
    torch: AccuracyRow | None
    tvm: AccuracyRow | None
    parity: ParityRow | None
    int8_mac_share: float | None
    float_ops: list[str]
    target: str | None
    import_s: float | None
    compile_s: float | None  # None where `cached` says that it was compiled earlier
    cached: bool | None
    load_s: float | None  # of compiled code from the cache; None: it was compiled in this run
    latency_ms: float | None  # p50 of one image in TVM, beside the other numerics; None: there are no others
    duration_s: float


class DatasetRow(TypedDict):
    """The images that every model saw."""

    name: str
    root: str
    is_default: bool
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


class EnvironmentRow(TypedDict):
    """What a reader needs to judge, or to repeat, the run."""

    versions: dict[str, str | None]
    git: str | None
    platform: str
    cpu: CpuRow
    threads: int
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


class AgreementRow(TypedDict):
    """How often the answers to the same images agree between every two of a model's flows and engines."""

    model: str
    sides: list[str]  # as "fx TVM", "fx PyTorch"; fp32 first
    top1: list[float]  # accuracy of each side, in percent
    same_top1: list[list[float]]  # percent of the images on which two sides give the same best class


class RunRow(HeadRow):
    """All of run.json."""

    models: list[ModelRow]
    agreement: list[AgreementRow]  # of models that were quantized by several flows


class SampleRow(TypedDict):
    """One image under one model; top-5 lists are class indices, best first."""

    model: str
    flow: str
    numerics: str
    id: str
    label: int
    fp32_top5: list[int] | None
    torch_top5: list[int] | None
    tvm_top5: list[int]
    identical: bool | None
    max_abs_diff: float | None


@dataclass(frozen=True)
class RunResult:
    """What one evaluation found: ``run`` is run.json, ``samples`` the rows of samples.parquet."""

    run: RunRow
    samples: list[SampleRow] = field(default_factory=list, repr=False)

    @property
    def exit_code(self) -> int:
        """The process exit code that says how the run ended.

        130 interrupted, 3 some models errored or are unsupported, 1 a check that was asked for failed, else 0. A
        mistrusted model never meets a check.
        """
        statuses = {model["status"] for model in self.run["models"]}
        if self.run["interrupted"]:
            return EXIT_INTERRUPTED
        if statuses & {"error", "unsupported"}:
            return EXIT_MODELS_ERRORED
        config = self.run["config"]
        asked = any(config.get(name) is not None for name in ("check_parity", "min_top1", "min_int8_macs"))
        if "failed" in statuses or (asked and "mistrusted" in statuses):
            return EXIT_CHECK_FAILED
        return EXIT_OK
