"""A model that ONNX Runtime quantized, in TVM: any ONNX file in QDQ form will do, whatever framework it came from.

pip install 'quantvm[onnx]' onnxruntime
python onnx_file.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import quantvm


class Images(CalibrationDataReader):
    """Images to calibrate on, one batch at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"input": images[i : i + 4]} for i in range(0, 16, 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, or None at the end."""
        return next(self._batches, None)


def write_float_onnx(path: str) -> None:
    """Writes a small float network; yours may come from any framework."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    torch.onnx.export(
        network, (torch.randn(2, 3, 32, 32),), path, input_names=["input"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
    )  # fmt: skip


def main() -> None:
    """Quantizes with ONNX Runtime, compiles with quantvm, compares the two."""
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    write_float_onnx("float.onnx")
    quant_pre_process("float.onnx", "prepared.onnx")
    quantize_static("prepared.onnx", "int8.onnx", Images(images), quant_format=QuantFormat.QDQ, per_channel=True)

    artifact = quantvm.compile("int8.onnx")  # the file says its shapes
    actual = artifact(images)
    session = onnxruntime.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": images})
    print(f"{100 * artifact.report.int8_mac_share:.0f} % of the multiply-adds in int8, {artifact.report.numerics}")
    print("greatest difference", float(np.abs(actual - expected).max()))
    print("same best class:", bool((actual.argmax(1) == expected.argmax(1)).all()))
    artifact.save("onnx.qvm")


if __name__ == "__main__":
    main()
