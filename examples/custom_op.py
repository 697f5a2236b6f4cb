"""An operator of one's own, taught to quantvm from outside of the package.

    python custom_op.py

The operator, `mylib::hard_mish`, is PyTorch's through `torch.library`. Its converter says what it means in Relax:
dequantize, the float formula, quantize. It runs in float there, between int8 kernels, and the report says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import nn
from tvm import relax

import quantvm
from quantvm.frontend import QdqBuilder, QTensor

LIBRARY = torch.library.Library("mylib", "DEF")
LIBRARY.define("hard_mish(Tensor x, float scale, int zero_point) -> Tensor")


def hard_mish(x: torch.Tensor) -> torch.Tensor:
    """Computes x / 2 * clamp(x + 2, 0, 2)."""
    return x * 0.5 * torch.clamp(x + 2, 0, 2)


@torch.library.impl(LIBRARY, "hard_mish", "QuantizedCPU")
def quantized_hard_mish(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """What PyTorch computes on quantized tensors."""
    return torch.quantize_per_tensor(hard_mish(x.dequantize()), scale, zero_point, torch.quint8)


@quantvm.register_converter("mylib::hard_mish")
def convert_hard_mish(builder: QdqBuilder, x: QTensor, scale: float, zero_point: int) -> QTensor:
    """Says the same in Relax; the parameters are those of the operator's schema."""
    x_f32 = builder.real(x)  # dequantized
    half = builder.emit(relax.op.multiply(x_f32, relax.const(0.5, "float32")))
    gate = builder.emit(relax.op.clip(relax.op.add(x_f32, relax.const(2.0, "float32")), 0, 2))
    return builder.quantized(builder.emit(relax.op.multiply(half, gate)), builder.params(scale, zero_point))


class Network(nn.Module):
    """A quantized convolution, the operator, another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(0.06, 64, torch.quint8)
        self.first, self.second = self._conv(3, 16), self._conv(16, 8)

    @staticmethod
    def _conv(in_channels: int, out_channels: int) -> nn.Module:
        conv = nnq.Conv2d(in_channels, out_channels, 3, padding=1)
        weight = torch.quantize_per_tensor(torch.randn(out_channels, in_channels, 3, 3), 0.04, 0, torch.qint8)
        conv.set_weight_bias(weight, torch.randn(out_channels))
        conv.scale, conv.zero_point = 0.1, 120
        return conv

    def forward(self, x: torch.Tensor) -> Any:
        """Maps images (N, 3, H, W) to features (N, 8, H, W)."""
        y = torch.ops.mylib.hard_mish(self.first(self.quantize(x)), 0.25, 10)
        return self.second(y).dequantize()


def main() -> None:
    """Compiles the network and compares it with PyTorch, bit by bit."""
    torch.manual_seed(0)
    torch.backends.quantized.engine = "fbgemm"
    network, x = Network().eval(), torch.randn(2, 3, 24, 24)
    artifact = quantvm.compile(network, x[:1])
    print("left in float:", ", ".join(artifact.report.float_ops))
    print("same bits:", torch.equal(artifact(x), network(x)))


if __name__ == "__main__":
    main()
