"""The cost of quantization and of compilation: four forms of one network on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantvm.jobs.layer_differences.schema import LossRow, StageRow, WaterfallRow
from quantvm.progress import Progress
from quantvm.score.accuracy import AccuracyCount, top_k

Forward = Callable[[np.ndarray], np.ndarray]
"""(1, C, H, W) float32 -> (1, classes) float32."""

FP32, QDQ, TORCH, TVM = "fp32", "QDQ in float", "PyTorch int8", "TVM int8"
_STEPS = (("quantization", FP32, QDQ), ("PyTorch's int8 kernels", QDQ, TORCH), ("compiler", TORCH, TVM))


def waterfall(
    forwards: Mapping[str, Forward], images: Sequence[tuple[np.ndarray, int]], progress: Progress
) -> WaterfallRow:
    """Returns accuracy and output error of every stage, and what each step changes.

    Args:
        forwards: the function of each stage: fp32, QDQ in float, PyTorch int8 and TVM int8, in this order.
        images: input and label of each.
        progress: advanced for every image.
    """
    stages = {name: _Stage(name) for name in forwards}
    changed = {step: 0 for step, _, _ in _STEPS}
    n_outputs = 0
    with progress.task("waterfall", total=len(images)) as task:
        for x_f32, label in images:
            outputs = {name: forward(x_f32) for name, forward in forwards.items()}
            n_outputs += outputs[FP32].size
            for name, stage in stages.items():
                stage.add(outputs[name], outputs[FP32], label)
            for step, before, after in _STEPS:
                changed[step] += int(np.count_nonzero(outputs[before] != outputs[after]))
            task.advance()
    rows = {name: stage.row() for name, stage in stages.items()}
    losses: list[LossRow] = [
        {
            "step": f"{step}: {before} → {after}",
            "top1": rows[after]["top1"] - rows[before]["top1"],
            "top5": rows[after]["top5"] - rows[before]["top5"],
            "outputs_changed": 100 * changed[step] / n_outputs,
        }
        for step, before, after in _STEPS
    ]
    return {"images": len(images), "stages": list(rows.values()), "losses": losses}


class _Stage:
    """Accuracy of one stage, and the error of its outputs against fp32's."""

    def __init__(self, name: str) -> None:
        self._name, self._accuracy, self._agreeing = name, AccuracyCount(), 0
        self._signal = self._noise = self._absolute = self._cosine = 0.0
        self._n = 0

    def add(self, y_f32: np.ndarray, expected_f32: np.ndarray, label: int) -> None:
        """Counts one image."""
        self._accuracy.add(top_k(y_f32), np.array([label]))
        self._agreeing += int(top_k(y_f32, 1)[0, 0] == top_k(expected_f32, 1)[0, 0])
        y, expected = y_f32.astype(np.float64).ravel(), expected_f32.astype(np.float64).ravel()
        self._signal += float(expected @ expected)
        self._noise += float(np.square(y - expected).sum())
        self._absolute += float(np.abs(y - expected).sum())
        norm = float(np.linalg.norm(y) * np.linalg.norm(expected))
        self._cosine += float(y @ expected) / norm if norm else 1.0
        self._n += y.size

    def row(self) -> StageRow:
        images = max(self._accuracy.n, 1)
        no_noise = self._noise == 0 or self._signal == 0
        return {
            "stage": self._name,
            **self._accuracy.row(),
            "sqnr_db": None if no_noise else 10 * float(np.log10(self._signal / self._noise)),
            "cosine": self._cosine / images,
            "mean_abs_diff": self._absolute / max(self._n, 1),
            "top1_agreement": 100 * self._agreeing / images,
        }
