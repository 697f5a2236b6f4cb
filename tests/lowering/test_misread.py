"""Where PyTorch's kernels take the bytes of a channels-last tensor for a contiguous one's: reproduced, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

import quantvm
from quantvm.torch_compat import quantization_engine


def convolution(inputs: int, outputs: int, size: int, bias: torch.Tensor | None = None) -> nnq.Conv2d:
    """Returns a quantized convolution whose result has the size of its input."""
    made = nnq.Conv2d(inputs, outputs, size, padding=size // 2)
    weight = torch.randn(outputs, inputs, size, size) * 0.3
    made.set_weight_bias(torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8), bias)
    made.scale, made.zero_point = 0.05, 100
    return made


class Clips(nn.Module):
    """Clips of a convolution's result, which is channels-last, and of the input, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(0.04, 120, torch.quint8)
        self.conv = convolution(3, 6, 3, torch.randn(6))
        self.pointwise = convolution(6, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = self.quantize(x)
        y = self.conv(q)
        clipped = F.hardtanh(y, -0.5, 1.0)
        found = (clipped, self.pointwise(clipped), F.relu6(q), torch.clamp(y[:, 1:4], 0.0, 1.0))
        return tuple(value.dequantize() for value in found)


class Pools(nn.Module):
    """Pools and interpolation of single pixels: of a contiguous tensor, and of a convolution's result."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(0.04, 120, torch.quint8)
        self.conv = convolution(6, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = self.quantize(x)
        found = []
        for single in (q, self.conv(q)):
            found += [F.adaptive_avg_pool2d(single, size) for size in ((2, 3), (1, 1))]
            found += [F.avg_pool2d(single, 2, 1, 1), F.avg_pool2d(single, 2, 1, 1, ceil_mode=True)]
            found += [F.max_pool2d(single, 2, 1, 1), F.max_pool2d(single, 2, 1, 1, ceil_mode=True)]
            found += [F.interpolate(single, size=(2, 3), mode="bilinear")]
        return tuple(value.dequantize() for value in found)


class Pixels(nn.Module):
    """Single pixels that come from pools: whether they are channels-last depends on the engine and the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(0.04, 120, torch.quint8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, found = self.quantize(x), []
        for single in (
            F.adaptive_avg_pool2d(q, 1), F.avg_pool2d(q, (3, 2)), F.avg_pool2d(q, (3, 2), ceil_mode=True),
            F.max_pool2d(q, (3, 2)), F.max_pool2d(q, (3, 2), ceil_mode=True), q.mean((2, 3), keepdim=True),
        ):  # fmt: skip
            found += [F.adaptive_avg_pool2d(single, (2, 3)), F.interpolate(single, size=(2, 3), mode="bilinear")]
            found += [F.max_pool2d(F.relu(single), 2, 1, 1)]
        return tuple(value.dequantize() for value in found)


@pytest.mark.parametrize("engine", ["qnnpack", "fbgemm", "x86"])
@pytest.mark.parametrize(("network", "size"), [(Clips, (3, 5, 4)), (Pools, (6, 1, 1)), (Pixels, (6, 3, 2))])
def test_results_are_pytorchs(engine: str, network: type[nn.Module], size: tuple[int, ...]):
    with quantization_engine(engine):
        torch.manual_seed(0)
        module, x = network().eval(), torch.randn(2, *size)
        artifact = quantvm.compile(module, x, engine=engine, cache=False)
        assert artifact.verification.verdict == "exact"
        for batch in (1, 3):
            x = torch.randn(batch, *size)
            for index, (a, e) in enumerate(zip(artifact(x), module(x), strict=True)):
                assert torch.equal(a, e), f"output {index} of a batch of {batch}"
