"""Small quantized modules made of PyTorch's own operators, for tests of import, lowering and execution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from quantvm.kernels.conv.dot import select_dot, select_pairs
from quantvm.torch_compat import has_vnni

from .random_network import quantized_weight


class Quantized(nn.Module):
    """Quantizes its inputs, applies `body` to them, and dequantizes what comes out quantized."""

    def __init__(
        self, body: Callable[..., Any], scale: float = 0.0417, zero_point: int = 100, dtype: Any = torch.quint8
    ) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(float(np.float32(scale)), zero_point, dtype)
        self.body = body
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> Any:
        return _dequantized(self.body(*(self.quantize(x) for x in inputs)))


class Body(nn.Module):
    """A function of the quantized input and of registered layers."""

    def __init__(self, function: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.layers)


def _dequantized(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_dequantized(v) for v in value)
    return value.dequantize() if value.is_quantized else value


def save_traced(module: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Writes a module as a TorchScript file; returns its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.trace(module, example, check_trace=False).save(str(path))
    return path


def outputs_of(value: Any) -> tuple[torch.Tensor, ...]:
    """Returns one output or several as a tuple."""
    return value if isinstance(value, tuple) else (value,)


class Together(nn.Module):
    """Many cases in one module: compiling them one by one takes five times as long."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(modules)
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(y for case in self.cases for y in outputs_of(case(x)))


def conv2d(
    in_channels: int, out_channels: int, kernel: int = 3, *, relu: bool = False, bias: bool = True, groups: int = 1,
    stride: int = 1, padding: int = 0, dilation: int = 1, scheme: str = "per channel", scale: float = 0.31,
    zero_point: int = 77, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """Returns a quantized convolution with random weights."""
    rng = np.random.default_rng(seed)
    kind = nniq.ConvReLU2d if relu else nnq.Conv2d
    module = kind(
        in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias
    )
    weight = quantized_weight(rng, (out_channels, in_channels // groups, kernel, kernel), scheme)
    module.set_weight_bias(weight, _bias(rng, out_channels) if bias else None)
    module.scale, module.zero_point = float(np.float32(scale)), zero_point
    return module


def linear(
    in_features: int, out_features: int, *, relu: bool = False, bias: bool = True, scheme: str = "per channel",
    scale: float = 0.31, zero_point: int = 77, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """Returns a quantized linear layer with random weights."""
    rng = np.random.default_rng(seed)
    module = (nniq.LinearReLU if relu else nnq.Linear)(in_features, out_features, bias)
    module.set_weight_bias(
        quantized_weight(rng, (out_features, in_features), scheme), _bias(rng, out_features) if bias else None
    )
    module.scale, module.zero_point = float(np.float32(scale)), zero_point
    return module


def _bias(rng: np.random.Generator, channels: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(0, 2, channels).astype(np.float32))


def functional(scale: float = 0.0625, zero_point: int = 101) -> nnq.QFunctional:
    """Returns a converted FloatFunctional with the given output parameters."""
    module = nnq.QFunctional()
    module.scale, module.zero_point = float(np.float32(scale)), zero_point
    return module


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns float32 values that fill the quantized range, many of them ties under a scale of 0.0417."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.integers(-220, 330, shape) * np.float32(0.0417) / 2).astype(np.float32))


class SmallNetwork(nn.Module):
    """A CNN with every structure of the benchmark's models: residual, squeeze-and-excite, concat, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = nnq.Quantize(float(np.float32(0.0417)), 100, torch.quint8)
        self.stem = conv2d(3, 16, 3, stride=2, padding=1, relu=True, seed=1, zero_point=0)
        self.depthwise = conv2d(16, 16, 3, padding=1, groups=16, seed=2, scale=0.9, zero_point=120)
        self.hardswish = nnq.Hardswish(float(np.float32(0.45)), 3)
        self.squeeze = conv2d(16, 8, 1, relu=True, seed=3, scale=0.5, zero_point=0)
        self.excite = conv2d(8, 16, 1, seed=4, scale=0.05, zero_point=128)
        self.gate = functional(0.3, 2)
        self.residual = functional(0.5, 60)
        self.branch = conv2d(16, 8, 1, seed=5, scale=1.1, zero_point=130)
        self.join = functional(0.6, 90)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = linear(24, 10, seed=6, scale=0.8, zero_point=128)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.quantize(x))
        y = self.hardswish(self.depthwise(x))
        gate = torch.nn.functional.hardsigmoid(self.excite(self.squeeze(torch.nn.functional.adaptive_avg_pool2d(y, 1))))
        x = self.residual.add(self.gate.mul(y, gate), x)
        x = self.pool(self.join.cat([x, self.branch(x)], 1))
        return self.head(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1)).dequantize()


def convolutions_here(kernels: Mapping[str, int], target: Any, forced: str | None = None) -> int:
    """Returns how many dense convolutions sum as code for PyTorch's bits does on this CPU; weights split or not."""
    dot = select_dot(target, forced) if has_vnni() else select_pairs(target, forced)
    return sum(kernels.get(f"conv2d_u8i8acc32_{name}", 0) for name in (dot.name, f"{dot.name}_split"))
