"""A CNN of one's own, quantized by PyTorch 2's export flow (PT2E), compiled to int8 code.

pip install 'quantvm[pt2e]'
python own_cnn_pt2e.py
"""

from __future__ import annotations

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import quantvm


class Network(nn.Module):
    """Two convolutions with a residual, and a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, H, W) to scores (N, classes)."""
        x = self.stem(x)
        x = self.relu(self.conv(x) + x)
        return self.head(self.pool(x).flatten(1))


def main() -> None:
    """Exports, quantizes, calibrates, compiles and compares."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32)  # your own, preprocessed
    example = (images[:2],)
    any_batch = ({0: torch.export.Dim("batch")},)

    exported = torch.export.export(Network().eval(), example, dynamic_shapes=any_batch).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(images)  # calibration
    converted = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=any_batch)

    artifact = quantvm.compile(converted)  # or the path of a .pt2 file; it says its shapes itself
    actual, expected = artifact(images), converted.module()(images).detach()
    print(f"{100 * artifact.report.int8_mac_share:.0f} % of the multiply-adds in int8, {artifact.report.numerics}")
    print("greatest difference", float((actual - expected).abs().max()))
    print("same best class:", bool((actual.argmax(1) == expected.argmax(1)).all()))
    artifact.save("own_cnn.qvm")


if __name__ == "__main__":
    main()
