"""Collects what is found about one model, batch by batch, and makes a row of run.json from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantvm.score.accuracy import AccuracyCount, top_k
from quantvm.score.parity import ArrayF32, ParityCount, check_outputs, shortest_float
from quantvm.score.schema import SampleRow

if TYPE_CHECKING:
    from quantvm.data import Batch, CalibrationSet
    from quantvm.runtime import CompileReport
    from quantvm.workload.program import Program


@dataclass
class Measurement:
    """What was found about one model with one flow and one numerics; it is kept even if a run is interrupted."""

    numerics: str = "torch"
    flow: str = "eager"
    parity: ParityCount = field(default_factory=ParityCount)
    fp32: AccuracyCount = field(default_factory=AccuracyCount)
    torch: AccuracyCount = field(default_factory=AccuracyCount)
    tvm: AccuracyCount = field(default_factory=AccuracyCount)
    samples: list[SampleRow] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # the fields of ModelRow that need no image
    output_scale: float | None = None

    def add(
        self, name: str, batch: Batch, fp32_f32: ArrayF32 | None, torch_f32: ArrayF32 | None, tvm_f32: ArrayF32
    ) -> None:
        """Counts the engines' outputs for one batch, each (N, classes) float32; None for engines that did not run."""
        found = None if torch_f32 is None else self.parity.add(tvm_f32, torch_f32, batch.ids)
        if found is None:
            tvm_top5 = top_k(self.parity.add_alone(tvm_f32, batch.ids))
        else:
            tvm_top5 = found.actual_top5
            self.torch.add(found.expected_top5, batch.labels)
        fp32_top5 = None
        if fp32_f32 is not None:
            fp32_top5 = top_k(check_outputs("PyTorch fp32", fp32_f32, len(batch.ids)))
            self.fp32.add(fp32_top5, batch.labels)
        self.tvm.add(tvm_top5, batch.labels)
        for i, image_id in enumerate(batch.ids):
            self.samples.append(
                {
                    "model": name,
                    "flow": self.flow,
                    "numerics": self.numerics,
                    "id": image_id,
                    "label": int(batch.labels[i]),
                    "fp32_top5": None if fp32_top5 is None else fp32_top5[i].tolist(),
                    "torch_top5": None if found is None else found.expected_top5[i].tolist(),
                    "tvm_top5": tvm_top5[i].tolist(),
                    "identical": None if found is None else bool(found.image_identical[i]),
                    "max_abs_diff": None if found is None else shortest_float(found.abs_diff[i].max()),
                }
            )

    def take_quantized(self, quantized: Program, calibration: CalibrationSet) -> None:
        """Notes how the model was quantized, as the model itself says: a checkpoint has its own scheme and ranges."""
        n = quantized.quantvm_n_calibration
        source = calibration.source if n else "none, the weights bring their own ranges"
        self.facts |= {
            "engine": quantized.quantvm_engine,
            "scheme": quantized.quantvm_scheme,
            "calibration": {"n": n, "source": source},
            "reference": quantized.reference,
        }

    def take_report(self, report: CompileReport) -> None:
        """Notes what the compiler reports about the artifact; a user's own program decides its numerics."""
        self.numerics = report.numerics
        self.output_scale = report.output_scale
        self.facts |= {
            "engine": report.engine,
            "int8_mac_share": report.int8_mac_share,
            "float_ops": list(report.float_ops),
            "target": report.target,
            "import_s": report.import_s,
            "compile_s": report.compile_s,
            "cached": report.cached,
            "load_s": report.load_s,
        }

    def results(self) -> dict[str, Any]:
        """Returns the fields of ModelRow that follow from the images counted so far; none before the first batch."""
        if self.tvm.n == 0:
            return {}
        return {
            "n_images": self.tvm.n,
            "fp32": self.fp32.row() if self.fp32.n else None,
            "torch": self.torch.row() if self.torch.n else None,
            "tvm": self.tvm.row(),
            "parity": self.parity.row(self.output_scale) if self.parity.images_total else None,
        }
