"""One table of operators: what each is traced from, and the Relax that it must become.

`relax` lists the operators between the quantization of the input and the result, in order. A case keyed by an op must
hold that op; test_converters.py checks it, and that no converter is without a case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.quantized_modules import Quantized, conv2d, functional, linear

Q = torch.ops.quantized
DQ = "dequantize"


@dataclass(frozen=True)
class Case:
    """A body of one quantized input, and the Relax operators that it becomes.

    Attributes:
        op: the TorchScript operator that the case is for.
        body: quantized tensor(s) -> tensor or tuple of tensors.
        relax: names of the Relax operators, in order, without those that quantize the input.
        shape: of the input.
        scripted: whether the operator comes from `torch.jit.script` only.
        exact: whether the result must have PyTorch's bits (float exponentials need not).
    """

    op: str
    body: Any
    relax: str
    shape: tuple[int, ...] = (2, 8, 6, 6)
    scripted: bool = False
    exact: bool = True

    def __str__(self) -> str:
        return self.op

    def module(self) -> nn.Module:
        return torch.jit.script(self.body) if self.scripted else Quantized(self.body)


class _Both(nn.Module):
    """A float functional on the input and on its own transform, which has other parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.functional, self.other = name, functional(), conv2d(8, 8, 1, seed=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = self.other(x)
        if self.name == "cat":
            return self.functional.cat([x, other], 1)
        if self.name == "mul_relu":
            return Q.mul_relu(x, other, self.functional.scale, self.functional.zero_point)
        return getattr(self.functional, self.name)(x, other)


class _Contiguous(nn.Module):
    """PyTorch's formula for cat depends on whether its inputs are channels-last, as convolutions leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv2d(8, 8, 1, seed=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return Q.cat([y.contiguous(), y], 1, 0.2, 4)


class _Scripted(nn.Module):
    """What only `torch.jit.script` writes into a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor(2))
        self.register_buffer("factor", torch.tensor(3))

    def sizes(self, x: torch.Tensor) -> tuple[int, int]:
        return x.size(1) // 2, 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.quantize_per_tensor(x, 0.0625, 100, torch.quint8)
        half, rest = self.sizes(x)
        y = torch.flatten(q.view(x.size(0), half, rest, 18), self.start).dequantize()
        return torch.add(y, y, alpha=self.factor)


class _ScriptedDict(nn.Module):
    """A dict of tensors, of which all is known when it is imported but the tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.quantize_per_tensor(x, 0.0625, 100, torch.quint8)
        found = {"whole": q.dequantize(), "clipped": torch.relu(q).dequantize()}
        first, last = found.keys()[0], found.values()[1]  # lists, in TorchScript alone
        _, clipped = found.items()[1]
        total = found[first] + last if "clipped" in found else last
        return total * clipped


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)


def _pad_value(x: torch.Tensor) -> torch.Tensor:
    return torch.constant_pad_nd(x, [1, 0, 0, 2], 0.31)


CONV = f"{DQ} {DQ} nn.conv2d add quantize"
LINEAR = f"{DQ} permute_dims {DQ} matmul"
GATE = f"{DQ} add clip"
GLOBAL_POOL = f"{DQ} nn.adaptive_avg_pool2d quantize"
QDQ = f"quantize {DQ}"
FLAT = f"reshape {DQ}"
SHUFFLED = f"reshape permute_dims reshape reshape {DQ}"

CASES = [
    # ---- quantize and dequantize
    Case("aten::quantize_per_tensor", lambda x: x, DQ),
    Case(
        "aten::quantize_per_tensor", lambda x: torch.quantize_per_tensor(x.dequantize(), 0.1, -3, torch.qint8),
        f"{DQ} {QDQ}",
    ),
    Case("aten::dequantize", lambda x: (x.dequantize(), x), f"{DQ} {DQ}"),
    # ---- contractions
    Case("quantized::conv2d", conv2d(8, 5, 3, padding=1), f"{CONV} {DQ}"),
    Case(
        "quantized::conv2d", conv2d(8, 17, 2, stride=2, bias=False, scheme="per tensor"),
        f"{DQ} {DQ} nn.conv2d {QDQ}",
    ),
    Case("quantized::conv2d", conv2d(8, 8, 3, groups=8, dilation=2, scheme="per tensor asymmetric"), f"{CONV} {DQ}"),
    Case("quantized::conv2d_relu", conv2d(8, 6, 3, groups=2, relu=True), f"{DQ} {DQ} nn.conv2d add nn.relu {QDQ}"),
    Case("quantized::linear", nn.Sequential(nn.Flatten(), linear(288, 7)), f"reshape {LINEAR} add {QDQ}"),
    Case("quantized::linear", linear(6, 7, bias=False, scheme="per tensor"), f"{LINEAR} {QDQ}"),
    Case("quantized::linear_relu", linear(6, 33, relu=True), f"{LINEAR} add nn.relu {QDQ}"),
    # ---- arithmetic
    Case("quantized::add", _Both("add"), f"{CONV} {DQ} {DQ} add {QDQ}"),
    Case("quantized::add_relu", _Both("add_relu"), f"{CONV} {DQ} {DQ} add nn.relu {QDQ}"),
    Case("quantized::mul", _Both("mul"), f"{CONV} {DQ} {DQ} multiply {QDQ}"),
    Case(
        "quantized::mul", lambda x: Q.mul(x, F.adaptive_avg_pool2d(x, 1), 1.0, 50),
        f"{GLOBAL_POOL} {DQ} {DQ} multiply {QDQ}",
    ),
    Case("quantized::mul_relu", _Both("mul_relu"), f"{CONV} {DQ} {DQ} multiply nn.relu {QDQ}"),
    Case("quantized::cat", _Both("cat"), f"{CONV} {DQ} {DQ} concat {QDQ}"),
    Case("quantized::cat", lambda x: Q.cat([x, x], -3, 0.0625, 101), f"{DQ} {DQ} concat {QDQ}"),
    Case("aten::cat", lambda x: torch.cat([x, F.relu(x)], 1), f"{DQ} nn.relu quantize {DQ} {DQ} concat {QDQ}"),
    Case("aten::cat", lambda x: torch.cat([x.dequantize(), x.dequantize()], 2), f"{DQ} {DQ} concat"),
    Case("prim::ListConstruct", lambda x: torch.cat([x, x, x], -1), f"{DQ} {DQ} {DQ} concat {QDQ}"),
    # ---- activations
    Case("quantized::hardswish", lambda x: Q.hardswish(x, 0.03, 20), f"{GATE} multiply divide {QDQ}"),
    Case("quantized::leaky_relu", lambda x: Q.leaky_relu(x, 0.2, False, 0.03, 20), f"{DQ} nn.leakyrelu {QDQ}"),
    Case("quantized::relu6", lambda x: Q.relu6(x), f"{DQ} clip {QDQ}"),
    Case("aten::hardsigmoid", lambda x: F.hardsigmoid(x), f"{GATE} divide {QDQ}"),
    Case("aten::hardsigmoid_", lambda x: F.hardsigmoid(x.dequantize(), inplace=True), f"{GATE} divide"),
    Case("aten::sigmoid", lambda x: torch.sigmoid(x), f"{DQ} sigmoid {QDQ}"),
    Case("aten::sigmoid_", lambda x: x.dequantize().sigmoid_(), f"{DQ} sigmoid", exact=False),
    Case("aten::relu", lambda x: F.relu(x), f"{DQ} nn.relu {QDQ}"),
    Case("aten::relu_", lambda x: F.relu_(x), f"{DQ} nn.relu {QDQ}"),
    Case("aten::relu6", lambda x: F.relu6(x.dequantize()), f"{DQ} clip"),
    Case("aten::relu6_", lambda x: F.relu6(x.dequantize(), inplace=True), f"{DQ} clip"),
    Case("aten::hardtanh", lambda x: F.hardtanh(x, -0.7, 0.9), f"{DQ} clip {QDQ}"),
    Case("aten::hardtanh_", lambda x: F.hardtanh_(x), f"{DQ} clip {QDQ}"),
    Case("aten::clamp", lambda x: torch.clamp(x, -1.0, 2.0), f"{DQ} clip {QDQ}"),
    Case("aten::clamp", lambda x: torch.clamp(x, min=0.3), f"{DQ} clip {QDQ}"),
    Case("aten::clamp", lambda x: torch.clamp(x, max=0.3), f"{DQ} clip {QDQ}"),
    Case("aten::clamp_", lambda x: x.dequantize().clamp_(-1.0, 2.0), f"{DQ} clip"),
    # ---- float arithmetic
    Case("aten::add", lambda x: x.dequantize() + x.dequantize(), f"{DQ} {DQ} add"),
    Case("aten::add", lambda x: torch.add(x.dequantize(), x.dequantize(), alpha=3), f"{DQ} {DQ} multiply add"),
    Case("aten::add", lambda x: x.dequantize() + 1.5, f"{DQ} add"),
    Case("aten::add_", lambda x: x.dequantize().add_(0.3), f"{DQ} add"),
    Case("aten::mul", lambda x: x.dequantize() * x.dequantize(), f"{DQ} {DQ} multiply"),
    Case("aten::mul_", lambda x: x.dequantize().mul_(0.3), f"{DQ} multiply"),
    Case("aten::softmax", lambda x: torch.softmax(x.dequantize(), 1), f"{DQ} nn.softmax", exact=False),
    # ---- pools
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), f"{DQ} nn.max_pool2d {QDQ}"),
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, (2, 3), ceil_mode=True), f"{DQ} nn.max_pool2d {QDQ}"),
    Case(
        "quantized::max_pool2d", lambda x: Q.max_pool2d(x, [2, 3], [2, 1], [0, 1], [1, 1], False),
        f"{DQ} nn.max_pool2d {QDQ}",
    ),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), f"{DQ} nn.avg_pool2d {QDQ}"),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, (2, 4), ceil_mode=True), f"{DQ} nn.avg_pool2d {QDQ}"),
    Case("aten::adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (1, 1)), f"{GLOBAL_POOL} {DQ}"),
    Case("aten::adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (None, 4)), f"{GLOBAL_POOL} {DQ}"),
    Case("aten::mean", lambda x: x.mean([2, 3]), f"{DQ} mean {QDQ}"),
    Case("aten::mean", lambda x: x.mean([-1, -2], keepdim=True), f"{DQ} mean {QDQ}"),
    # ---- data movement
    Case("aten::flatten", lambda x: torch.flatten(x, 1), FLAT),
    Case("aten::flatten", lambda x: torch.flatten(x, 0, 1), FLAT),
    Case("aten::view", lambda x: x.view(x.size(0), -1), FLAT),
    Case("aten::view", lambda x: x.view(-1, 3, 6), FLAT),
    Case("aten::reshape", lambda x: x.reshape(x.shape[0], 4, 12, -1), FLAT),
    Case("aten::transpose", lambda x: x.transpose(1, -1), f"permute_dims {DQ}"),
    Case("aten::permute", lambda x: x.permute(0, 2, -1, 1), f"permute_dims {DQ}"),
    Case("aten::contiguous", lambda x: x.transpose(2, 3).contiguous(), f"permute_dims reshape {DQ}"),
    Case("aten::contiguous", _Contiguous(), f"{CONV} reshape {DQ} {DQ} concat {QDQ}"),
    Case(
        "aten::contiguous", lambda x: x.contiguous(memory_format=torch.channels_last),
        f"permute_dims reshape permute_dims {DQ}"
    ),
    Case("aten::clone", lambda x: x.clone(), f"reshape {DQ}"),
    Case("aten::detach", lambda x: x.detach(), DQ),
    Case("aten::unsqueeze", lambda x: x.unsqueeze(-1), f"expand_dims {DQ}"),
    Case("aten::unsqueeze_", lambda x: x.dequantize().unsqueeze_(1), f"{DQ} expand_dims"),
    Case("aten::squeeze", lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(), f"{GLOBAL_POOL} squeeze {DQ}"),
    Case("aten::squeeze", lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1), f"{GLOBAL_POOL} squeeze {DQ}"),
    Case("aten::squeeze", lambda x: x.squeeze(1), DQ),
    Case(
        "aten::squeeze_", lambda x: F.adaptive_avg_pool2d(x.dequantize(), 1).squeeze_(2),
        f"{DQ} nn.adaptive_avg_pool2d squeeze", exact=False,
    ),
    Case("aten::slice", lambda x: x[:, 1:-1, ::2], f"strided_slice strided_slice {DQ}"),
    Case("aten::select", lambda x: x[:, 1, -2], f"strided_slice squeeze strided_slice squeeze {DQ}"),
    Case("aten::pad", lambda x: F.pad(x, [1, 0, 2, 1]), f"nn.pad {DQ}"),
    Case("aten::constant_pad_nd", _pad_value, f"nn.pad {DQ}"),
    Case("aten::chunk", lambda x: x.chunk(3, 1), f"strided_slice strided_slice strided_slice {DQ} {DQ} {DQ}"),
    Case("aten::chunk", lambda x: x.chunk(2, -1), f"strided_slice strided_slice {DQ} {DQ}"),
    Case("prim::ListUnpack", lambda x: x.chunk(2, 1)[1], f"strided_slice strided_slice {DQ}"),
    Case("prim::TupleConstruct", lambda x: (F.relu(x), x), f"{DQ} nn.relu quantize {DQ} {DQ}"),
    # ---- nothing in inference
    Case("aten::dropout", lambda x: F.dropout(x, 0.5, training=False), DQ),
    Case("aten::dropout_", lambda x: torch.dropout_(x.dequantize(), 0.5, False), DQ),
    Case("aten::feature_dropout", lambda x: torch.feature_dropout(x.dequantize(), 0.5, False), DQ),
    # ---- sizes
    Case("aten::size", _shuffled, SHUFFLED),
    Case("aten::Int", _shuffled, SHUFFLED),
    Case("prim::NumToTensor", _shuffled, SHUFFLED),
    Case("aten::floor_divide", _shuffled, SHUFFLED),
    Case("aten::mul", lambda x: x.view(x.size(0), x.size(1) * 2, -1), FLAT),
    Case("aten::add", lambda x: x.view(x.size(0), x.size(1) + 1, -1), FLAT, shape=(2, 8, 3, 6)),
    Case("aten::floordiv", _Scripted(), f"reshape reshape {DQ} multiply add", scripted=True),
    Case("prim::TupleUnpack", _Scripted(), f"reshape reshape {DQ} multiply add", scripted=True),
    Case("aten::IntImplicit", _Scripted(), f"reshape reshape {DQ} multiply add", scripted=True),
    Case("aten::ScalarImplicit", _Scripted(), f"reshape reshape {DQ} multiply add", scripted=True),
    # ---- dicts
    *(
        Case(op, _ScriptedDict(), f"{DQ} {DQ} nn.relu quantize {DQ} add multiply", scripted=True)
        for op in ("prim::DictConstruct", "aten::__contains__", "aten::keys", "aten::values", "aten::items")
    ),
]  # fmt: skip
