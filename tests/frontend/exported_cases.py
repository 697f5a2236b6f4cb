"""One case for each operator of exported programs that a converter is registered for, all in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.ao.quantization.fx._decomposed
from torch import nn

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
INT8 = (-128, 127, torch.int8)


def dequantized(x: torch.Tensor, scale: float = 0.05, zero_point: int = 3) -> torch.Tensor:
    """Returns x quantized to int8 and dequantized again."""
    return decomposed.dequantize_per_tensor.default(quantized(x, scale, zero_point), scale, zero_point, *INT8)


def quantized(x: torch.Tensor, scale: float = 0.05, zero_point: int = 3) -> torch.Tensor:
    return decomposed.quantize_per_tensor.default(x, scale, zero_point, *INT8)


class Together(nn.Module):
    """Every case applied to the dequantized input; one output each."""

    def __init__(self, cases: Sequence[Callable[[Together, torch.Tensor], torch.Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cases = cases
        self.conv, self.linear = nn.Conv2d(8, 5, 3, padding=1), nn.Linear(6, 4)
        self.norm = nn.BatchNorm2d(8).eval()
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias)
        self.register_buffer("scale", torch.tensor(0.0625))
        self.register_buffer("zero", torch.tensor(7))
        self.register_buffer("low", torch.tensor(-100))
        self.register_buffer("high", torch.tensor(90))
        self.register_buffer("scales", torch.rand(8) / 16 + 0.01)
        self.register_buffer("zeros", torch.arange(8) - 4)
        self.register_buffer("weight_i8", torch.randint(-127, 128, (5, 8, 3, 3), dtype=torch.int8))
        self.register_buffer("weight_scales", torch.rand(5) / 64 + 0.001)
        self.register_buffer("weight_zeros", torch.zeros(5, dtype=torch.int64))
        self.register_buffer("bias_i32", torch.randint(-9999, 9999, (5,), dtype=torch.int32))
        self.register_buffer("bias_scales", torch.rand(5) / 4096)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [case(self, dequantized(x)) for case in self.cases]


def _tensor_params(m: Together, x: torch.Tensor) -> torch.Tensor:
    q = decomposed.quantize_per_tensor.tensor(x, m.scale, m.zero, *INT8)
    return decomposed.dequantize_per_tensor.tensor(q, m.scale, m.zero, *INT8)


def _tensor_limits(m: Together, x: torch.Tensor) -> torch.Tensor:
    limits = (m.low, m.high, torch.int8)
    q = decomposed.quantize_per_tensor.tensor2(x, m.scale, m.zero, *limits)
    return decomposed.dequantize_per_tensor.tensor2(q, m.scale, m.zero, *limits)


def _channels(m: Together, x: torch.Tensor) -> torch.Tensor:
    q = decomposed.quantize_per_channel.default(x, m.scales, m.zeros, 1, *INT8)
    return decomposed.dequantize_per_channel.default(q, m.scales, m.zeros, 1, *INT8)


def _int32_bias(m: Together, x: torch.Tensor) -> torch.Tensor:
    weight = decomposed.dequantize_per_channel.default(m.weight_i8, m.weight_scales, m.weight_zeros, 0, *INT8)
    limits = (-(2**31), 2**31 - 1, torch.int32)
    bias = decomposed.dequantize_per_channel.default(m.bias_i32, m.bias_scales, m.weight_zeros, 0, *limits)
    return aten.conv2d.default(x, weight, bias, [1, 1], [1, 1])


def _weight_quantized_at_run_time(m: Together, x: torch.Tensor) -> torch.Tensor:
    w = decomposed.quantize_per_channel.default(m.conv.weight, m.weight_scales, m.weight_zeros, 0, *INT8)
    w = decomposed.dequantize_per_channel.default(w, m.weight_scales, m.weight_zeros, 0, *INT8)
    return aten.conv2d.default(x, w, m.conv.bias, [2, 1], [0, 1], [1, 2])


def _not_float32_scale(m: Together, x: torch.Tensor) -> torch.Tensor:
    return dequantized(x, scale=0.1 / 3, zero_point=-5)


def _batch_norm(m: Together, x: torch.Tensor) -> torch.Tensor:
    n = m.norm
    return aten.batch_norm.default(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, 1e-5, False)


def _in_place(op: Callable[..., torch.Tensor], *arguments: float) -> Callable[[Together, torch.Tensor], torch.Tensor]:
    return lambda m, x: op(x, *arguments)


CASES: dict[str, Callable[[Together, torch.Tensor], torch.Tensor]] = {
    "tensor_params": _tensor_params,
    "tensor_limits": _tensor_limits,
    "channels": _channels,
    "int32_bias": _int32_bias,
    "weight_quantized_at_run_time": _weight_quantized_at_run_time,
    "not_float32_scale": _not_float32_scale,
    "batch_norm": _batch_norm,
    "conv2d_same": lambda m, x: aten.conv2d.padding(x, torch.ones(5, 8, 2, 2) * m.scale, None, [1, 1], "same"),
    "linear": lambda m, x: m.linear(x),
    "linear_2d": lambda m, x: m.linear(x.mean([1, 2])),
    "addmm": lambda m, x: aten.addmm.default(m.linear.bias, x.mean([1, 2]), m.linear.weight.t()),
    "hardswish": lambda m, x: aten.hardswish.default(x),
    "hardswish_": _in_place(aten.hardswish_.default),
    "add": lambda m, x: aten.add.Tensor(x, dequantized(x, 0.25), alpha=2),
    "add_": lambda m, x: aten.add_.Tensor(x, dequantized(x, 0.25)),
    "add_scalar": lambda m, x: aten.add.Scalar(x, 2.0, 0.5),
    "sub": lambda m, x: aten.sub.Tensor(x, dequantized(x, 0.25), alpha=3),
    "sub_": lambda m, x: aten.sub_.Tensor(x, dequantized(x, 0.25)),
    "sub_scalar": lambda m, x: aten.sub.Scalar(x, 2.0),
    "mul": lambda m, x: aten.mul.Tensor(x, dequantized(x, 0.25)),
    "mul_": lambda m, x: aten.mul_.Tensor(x, dequantized(x, 0.25)),
    "mul_scalar": lambda m, x: aten.mul.Scalar(x, 0.3),
    "div": lambda m, x: aten.div.Tensor(x, m.scale),
    "div_": lambda m, x: aten.div_.Tensor(x, m.scale),
    "div_scalar": lambda m, x: aten.div.Scalar(x, 0.3),
    "split": lambda m, x: aten.split.Tensor(x, 3, 1)[2],
    "split_sizes": lambda m, x: aten.split_with_sizes.default(x, [5, 3], 1)[1],
    "chunk": lambda m, x: aten.chunk.default(x, 3, 1)[2],
    "relu": lambda m, x: aten.relu.default(x),
    "relu_": _in_place(aten.relu_.default),
    "relu6": lambda m, x: aten.relu6.default(x),
    "relu6_": _in_place(aten.relu6_.default),
    "hardtanh": lambda m, x: aten.hardtanh.default(x, -0.5, 0.75),
    "hardtanh_": _in_place(aten.hardtanh_.default, -0.5, 0.75),
    "clamp": lambda m, x: aten.clamp.default(x, None, 0.4),
    "clamp_": _in_place(aten.clamp_.default, -0.3),
    "hardsigmoid": lambda m, x: aten.hardsigmoid.default(x),
    "hardsigmoid_": _in_place(aten.hardsigmoid_.default),
    "sigmoid": lambda m, x: aten.sigmoid.default(x),
    "sigmoid_": _in_place(aten.sigmoid_.default),
    "softmax": lambda m, x: aten.softmax.int(x, 1),
    "max_pool2d": lambda m, x: aten.max_pool2d.default(x, [3, 2], [2, 2], [1, 0], [1, 1], True),
    "avg_pool2d": lambda m, x: aten.avg_pool2d.default(x, [3, 3], [2, 2], [1, 1], False, False),
    "adaptive_avg_pool2d": lambda m, x: aten.adaptive_avg_pool2d.default(x, [2, 3]),
    "mean": lambda m, x: aten.mean.dim(x, [2, 3], True),
    "cat": lambda m, x: aten.cat.default([x, dequantized(x, 0.25)], 1),
    "flatten": lambda m, x: aten.flatten.using_ints(x, 1),
    "view": lambda m, x: aten.view.default(x, [x.size(0), 4, -1]),
    "reshape": lambda m, x: aten.reshape.default(x, [x.size(0), 2, -1]),
    "unsafe_view": lambda m, x: aten._unsafe_view.default(x, [x.size(0), 8, 36]),
    "transpose": lambda m, x: aten.transpose.int(x, 1, -1),
    "permute": lambda m, x: aten.permute.default(x, [0, 2, 3, 1]),
    "unsqueeze": lambda m, x: aten.unsqueeze.default(x, 1),
    "squeeze": lambda m, x: aten.squeeze.dim(aten.mean.dim(x, [2], True), 2),
    "slice": lambda m, x: aten.slice.Tensor(x, 2, 1, -1, 2),
    "select": lambda m, x: aten.select.int(x, 1, -2),
    "pad": lambda m, x: aten.pad.default(x, [1, 2, 0, 1], "constant", 0.5),
    "constant_pad_nd": lambda m, x: aten.constant_pad_nd.default(x, [1, 1], 0.25),
    "upsample_nearest2d": lambda m, x: aten.upsample_nearest2d.vec(x, [4, 13], None),
    "contiguous": lambda m, x: aten.contiguous.default(x),
    "clone": lambda m, x: aten.clone.default(x),
    "detach": lambda m, x: aten.detach.default(x),
    "detach_": lambda m, x: aten.detach_.default(aten.clone.default(x)),
    "alias": lambda m, x: aten.alias.default(x),
    "lift_fresh_copy": lambda m, x: aten.lift_fresh_copy.default(x),
    "dropout": lambda m, x: aten.dropout.default(x, 0.5, False),
    "dropout_": lambda m, x: aten.dropout_.default(x, 0.5, False),
    "feature_dropout": lambda m, x: aten.feature_dropout.default(x, 0.5, False),
    "max_dim": lambda m, x: aten.max.dim(x, 1)[1],
    "min_dim": lambda m, x: aten.min.dim(x, 2, True)[0],
    "amax": lambda m, x: aten.amax.default(x, [2, 3]),
    "amin": lambda m, x: aten.amin.default(x, [1], True),
    "sort": lambda m, x: aten.sort.default(x, 1)[0],
    "sort_stable": lambda m, x: aten.sort.stable(x, stable=True, dim=2, descending=True)[1],
    "argsort_stable": lambda m, x: aten.argsort.stable(x, stable=True, dim=1),
    "topk": lambda m, x: aten.topk.default(x, 3, 1, False)[0],
    "median": lambda m, x: aten.median.dim(x, 1)[0],
    "cumsum": lambda m, x: aten.cumsum.default(x, 1),
    "cumprod": lambda m, x: aten.cumprod.default(x, 2),
    "to": lambda m, x: aten.to.dtype(quantized(x), torch.float32),
}
FLOAT: dict[str, Callable[[Together, torch.Tensor], torch.Tensor]] = {
    "gelu": lambda m, x: torch.nn.functional.gelu(x),
    "silu": lambda m, x: torch.nn.functional.silu(x),
    "layer_norm": lambda m, x: torch.nn.functional.layer_norm(x, [6, 6]),
    "conv_transpose2d": lambda m, x: torch.nn.functional.conv_transpose2d(x, m.conv.weight.transpose(0, 1)),
}
"""Operators that stay float ones."""
