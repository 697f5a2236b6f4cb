"""What run.json holds. It begins like all results; units are those of `report/schema.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from quantvm.report.schema import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MODELS_ERRORED,
    EXIT_OK,
    HeadRow,
    PyTorchRow,
    WeightsRow,
)
from quantvm.score.schema import AccuracyRow, AgreementRow, ParityRow, SampleRow, Status

CHECKS = ("check_parity", "min_top1", "min_int8_macs")
"""Options by which a user asks for a check. They decide no number, and a mistrusted model never meets them."""


class CalibrationRow(TypedDict):
    """On how many images the model was calibrated, and which; `n` is 0 when its weights brought their own ranges."""

    n: int
    source: str


class SameBitsRow(TypedDict):
    """The same images on each kind of processor that took part: how many have the same raw outputs on all of them."""

    cpus: list[str]
    n_images: int
    tvm: int
    torch: int | None  # None: there is no reference


class ModelRow(PyTorchRow):
    """One model of a run; the measured fields are None where `status` says that it was not measured."""

    name: str
    title: str
    status: Status
    reason: str | None
    remedy: str | None
    scheme: str
    flow: str
    reference: str | None  # what the row calls torch: PyTorch, ONNX Runtime; None: there is nothing to compare with
    preprocessing: dict[str, Any] | None  # resize, crop, interpolation, mean, std
    numerics: str  # what TVM follows in this row
    weights: WeightsRow | None
    calibration: CalibrationRow | None
    n_images: int
    n_fp32_images: int  # the float model may have run on fewer
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
    load_s: float | None  # loading compiled code from the cache; None: it was compiled in this run
    cpus: list[str]  # names of the processors that computed the row
    same_bits: SameBitsRow | None  # None: the kinds of processors were not compared, or there is only one
    latency_ms: float | None  # p50 of one image in TVM, if several numerics are compared; else None
    duration_s: float


def model_row(name: str, flow: str, known: Mapping[str, Any]) -> ModelRow:
    """Returns a row with the fields `known`; other fields are unknown, and the status is `skipped`."""
    row: ModelRow = {
        "name": name,
        "title": name,
        "status": "skipped",
        "reason": None,
        "remedy": None,
        "scheme": "",
        "engine": "",
        "flow": flow,
        "reference": "PyTorch",
        "preprocessing": None,
        "numerics": "",
        "weights": None,
        "calibration": None,
        "n_images": 0,
        "n_fp32_images": 0,
        "fp32": None,
        "torch": None,
        "tvm": None,
        "parity": None,
        "int8_mac_share": None,
        "float_ops": [],
        "target": None,
        "import_s": None,
        "compile_s": None,
        "cached": None,
        "load_s": None,
        "cpus": [],
        "same_bits": None,
        "latency_ms": None,
        "duration_s": 0.0,
    }
    return {**row, **known}  # type: ignore[typeddict-item]


class RunRow(HeadRow):
    """All of run.json."""

    models: list[ModelRow]
    agreement: list[AgreementRow]  # of models that were quantized by several flows


@dataclass(frozen=True)
class RunResult:
    """The result of one evaluation: ``run`` is run.json."""

    run: RunRow
    read_samples: Callable[[], list[SampleRow]] = field(default=list, repr=False, compare=False)

    @property
    def samples(self) -> list[SampleRow]:
        """The rows of samples.parquet: one for each image and model. They are read anew at each access."""
        return self.read_samples()

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
        asked = any(config.get(name) is not None for name in CHECKS)
        if "failed" in statuses or (asked and "mistrusted" in statuses):
            return EXIT_CHECK_FAILED
        return EXIT_OK
