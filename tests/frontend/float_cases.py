"""Cases of float islands, of normalizations, and of what PyTorch computes at import; `cases.py` says what a case is."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .cases import DQ, QDQ, Case, Q


def _weight(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(np.float32))


class _InFloat(nn.Module):
    """A float module on the dequantized input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(_weight(*parameter.shape) + index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.dequantize())


def _statistics(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.running_mean, norm.running_var = _weight(norm.num_features), _weight(norm.num_features) ** 2
    return norm


class _BatchNorm(nn.Module):
    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("mean", _weight(8))
        self.register_buffer("factor", _weight(8) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x, self.factor, self.mean, self.mean, self.factor**2, 1e-5, 0.0625, 101)


class _LayerNorm(nn.Module):
    def __init__(self, size: int, affine: bool = True) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("gamma", _weight(size) if affine else None)
        self.register_buffer("beta", _weight(size) if affine else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Q.layer_norm(x.flatten(2), [self.size], self.gamma, self.beta, 1e-5, 0.0625, 101)


class _PReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.quantize_per_tensor(_weight(8), 0.01, 0, torch.quint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Q.prelu(x, self.weight, 0.05, 100)


class _Masked(nn.Module):
    def __init__(self, inplace: bool = False, where: bool = False) -> None:
        super().__init__()
        self.inplace, self.where = inplace, where
        self.register_buffer("mask", _weight(6, 6) > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.dequantize()
        if self.where:
            return torch.where(self.mask, x, x * 2)
        return x.masked_fill_(self.mask, -2.5) if self.inplace else x.masked_fill(self.mask, -2.5)


class _Addmm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", _weight(288, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.weight[0], x.flatten(1).dequantize(), self.weight)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True).eval().requires_grad_(False)
        for parameter in self.attention.parameters():
            parameter.copy_(_weight(*parameter.shape) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2).dequantize()
        return self.attention(x, x, x, need_weights=False)[0]


def _shift_mask(x: torch.Tensor) -> torch.Tensor:
    """A mask that is filled in place piece by piece, as Swin's shifted windows are."""
    x = x.dequantize()
    mask = x.new_zeros((x.size(2) + (4 - x.size(2) % 4) % 4 - 2, 6))
    mask[1:3, :2] = 1.5
    mask[-2:].mul_(3)
    mask[0, 0] -= 0.25
    rest = (x.size(0) * 6) % 6
    return x + mask.masked_fill(mask == 0, -100.0) + rest


class _Branches(nn.Module):
    """Control flow that shapes and options decide: what `torch.jit.script` leaves of checks and optional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(1.5))
        self.register_buffer("enabled", torch.tensor(True))
        self.register_buffer("weight", _weight(8, 2, 3, 3))
        self.shift = torch.jit.Attribute(0.5, Optional[float])  # noqa: UP045 - TorchScript's spelling

    def scaled(self, x: torch.Tensor, factor: float | None) -> torch.Tensor:
        return x if factor is None else x * factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.quantize_per_tensor(x, 0.0625, 100, torch.quint8)
        if x.dim() != 4 or len(x.shape) != 4:
            raise ValueError("expected a batch of images")
        y = q.dequantize()
        y = self.scaled(y, float(self.factor)) if bool(self.enabled) else y.flatten(x.size()[1])
        shift = self.shift
        if shift is not None:
            y = y + shift
        return F.conv2d(torch.add(y, y, alpha=self.factor), self.weight, padding=1, groups=4)


class _Token(nn.Module):
    """A parameter that is quantized itself, as ViT's class token and position embedding in FX graph mode."""

    def __init__(self, *shape: int, op: Any) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("token", _weight(*shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(torch.quantize_per_tensor(self.token, 0.03, 70, torch.quint8), x.flatten(2))


def _cat_token(token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([token.expand(x.size(0), -1, -1), x], 1)


HEADS = "matmul add reshape permute_dims"
JOINED = "permute_dims reshape matmul add"
CUTS = "strided_slice strided_slice"

FLOAT_CASES = [
    # ---- quantized arithmetic with numbers
    Case("quantized::add", lambda x: Q.add(x, 1.5), DQ),
    Case("quantized::add_scalar", lambda x: Q.add_scalar(x, 9.0), f"{DQ} add {QDQ}"),
    Case("quantized::add_scalar", lambda x: Q.add_scalar(x, -8.5), f"{DQ} add {QDQ}"),
    Case("quantized::add_relu", lambda x: Q.add_relu(x, -0.9), f"{DQ} nn.relu {QDQ}"),
    Case("quantized::mul", lambda x: Q.mul(x, 0.3), DQ),
    Case("quantized::mul", lambda x: Q.mul(x, 0.0), f"{DQ} multiply {QDQ}"),
    Case("quantized::mul_scalar", lambda x: Q.mul_scalar(x, -1.7), f"{DQ} multiply {QDQ}"),
    Case("quantized::mul_scalar_relu", lambda x: Q.mul_scalar_relu(x, -1.7), f"{DQ} multiply {QDQ} nn.relu {QDQ}"),
    # ---- quantized activations
    Case("quantized::sigmoid", lambda x: Q.sigmoid(x, 0.0045, 3), f"{DQ} sigmoid {QDQ}"),
    Case("aten::tanh", lambda x: torch.tanh(x), f"{DQ} tanh {QDQ}"),
    Case("aten::tanh_", lambda x: x.dequantize().tanh_(), f"{DQ} tanh", exact=False),
    Case("aten::leaky_relu", lambda x: F.leaky_relu(x, 0.3), f"{DQ} nn.leakyrelu {QDQ}"),
    Case("aten::leaky_relu_", lambda x: F.leaky_relu_(x.dequantize(), 0.3), f"{DQ} nn.leakyrelu"),
    Case(
        "quantized::elu",
        lambda x: Q.elu(x, 0.05, 90, 1.5, 1.0, 1.0),
        f"{DQ} minimum multiply exp subtract multiply maximum add multiply {QDQ}",
    ),
    Case("quantized::prelu", _PReLU(), f"{DQ} {DQ} nn.prelu {QDQ}"),
    Case("aten::relu6", lambda x: F.relu6(x), f"{DQ} clip {QDQ}"),
    # ---- normalization
    Case("quantized::batch_norm2d", _BatchNorm(Q.batch_norm2d), f"{DQ} multiply add {QDQ}"),
    Case("quantized::batch_norm", _BatchNorm(Q.batch_norm), f"{DQ} multiply add {QDQ}"),
    Case("quantized::batch_norm2d_relu", _BatchNorm(Q.batch_norm2d_relu), f"{DQ} multiply add nn.relu {QDQ}"),
    Case("quantized::layer_norm", _LayerNorm(36), f"reshape {DQ} nn.layer_norm {QDQ}"),
    Case("quantized::layer_norm", _LayerNorm(36, affine=False), f"reshape {DQ} nn.layer_norm {QDQ}"),
    Case("aten::batch_norm", _InFloat(_statistics(nn.BatchNorm2d(8))), f"{DQ} multiply add", exact=False),
    Case("aten::layer_norm", _InFloat(nn.LayerNorm((6, 6))), f"{DQ} nn.layer_norm", exact=False),
    # ---- float arithmetic
    Case("aten::sub", lambda x: torch.sub(x.dequantize(), 0.4, alpha=3), f"{DQ} subtract", exact=False),
    Case("aten::sub", lambda x: x.view(x.size(0), x.size(1) - 2, -1), f"reshape {DQ}"),
    Case("aten::sub_", lambda x: x.dequantize().sub_(0.3), f"{DQ} subtract"),
    Case("aten::rsub", lambda x: 1.0 - x.dequantize(), f"{DQ} subtract"),
    Case("aten::div", lambda x: x.dequantize() / 3.0, f"{DQ} divide"),
    Case("aten::div", lambda x: x.view(torch.div(x.size(0) * 4, 4, rounding_mode="floor"), -1), f"reshape {DQ}"),
    Case("aten::div_", lambda x: x.dequantize().div_(0.3), f"{DQ} divide"),
    Case("aten::neg", lambda x: -x.dequantize(), f"{DQ} negative"),
    Case("aten::pow", lambda x: x.dequantize() ** 2, f"{DQ} power", exact=False),
    Case("aten::exp", lambda x: torch.exp(x.dequantize()), f"{DQ} exp", exact=False),
    Case("aten::abs", lambda x: torch.abs(x.dequantize()), f"{DQ} abs"),
    Case("aten::sqrt", lambda x: torch.sqrt(F.relu(x).dequantize()), f"{DQ} nn.relu {QDQ} sqrt", exact=False),
    Case("aten::masked_fill", _Masked(), f"{DQ} where"),
    Case("aten::masked_fill_", _Masked(inplace=True), f"{DQ} where"),
    Case("aten::where", _Masked(where=True), f"{DQ} multiply where"),
    Case("aten::to", lambda x: x.dequantize().to(torch.float32, copy=True), DQ),
    Case("aten::type_as", lambda x: x.dequantize().type_as(torch.ones(1)), DQ),
    # ---- float activations
    Case("aten::silu", lambda x: F.silu(x.dequantize()), f"{DQ} negative exp add divide", exact=False),
    Case("aten::silu_", lambda x: F.silu(x.dequantize(), inplace=True), f"{DQ} negative exp add divide", exact=False),
    Case("aten::gelu", lambda x: F.gelu(x.dequantize()), f"{DQ} nn.gelu", exact=False),
    Case("aten::gelu", lambda x: F.gelu(x.dequantize(), approximate="tanh"), f"{DQ} nn.gelu_tanh", exact=False),
    Case("aten::hardswish", lambda x: F.hardswish(x.dequantize()), f"{DQ} add clip multiply divide"),
    Case("aten::hardswish_", lambda x: F.hardswish(x.dequantize(), inplace=True), f"{DQ} add clip multiply divide"),
    Case(
        "aten::elu",
        lambda x: F.elu(x.dequantize(), 1.5),
        f"{DQ} minimum exp subtract maximum multiply add",
        exact=False,
    ),
    Case(
        "aten::elu_",
        lambda x: F.elu(x.dequantize(), inplace=True),
        f"{DQ} minimum exp subtract maximum add",
        exact=False,
    ),
    Case("aten::prelu", _InFloat(nn.PReLU(8)), f"{DQ} nn.prelu"),
    Case("aten::_softmax", lambda x: torch._softmax(x.dequantize(), -1, False), f"{DQ} nn.softmax", exact=False),
    # ---- float contractions
    Case("aten::linear", _InFloat(nn.Linear(6, 5)), f"{DQ} matmul add", exact=False),
    Case(
        "aten::matmul",
        lambda x: x.dequantize() @ x.dequantize().transpose(-1, -2),
        f"{DQ} {DQ} permute_dims matmul",
        exact=False,
    ),
    Case(
        "aten::bmm",
        lambda x: torch.bmm(x.flatten(2).dequantize(), x.flatten(2).transpose(1, 2).dequantize()),
        f"reshape {DQ} reshape permute_dims {DQ} matmul",
        exact=False,
    ),
    Case("aten::addmm", _Addmm(), f"reshape {DQ} matmul add", exact=False),
    Case(
        "aten::einsum",
        lambda x: torch.einsum("nchw,ncwk->nchk", x.dequantize(), x.dequantize()),
        f"{DQ} {DQ} einsum",
        exact=False,
    ),
    Case("aten::_convolution", _InFloat(nn.Conv2d(8, 4, 3, stride=2)), f"{DQ} nn.conv2d reshape add", exact=False),
    Case(
        "aten::scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(*(x.dequantize(),) * 3, is_causal=True),
        f"{DQ} where permute_dims multiply matmul add nn.softmax matmul",
        exact=False,
    ),
    Case(
        "aten::scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(*(x.dequantize(),) * 3, scale=0.2),
        f"{DQ} permute_dims multiply matmul nn.softmax matmul",
        exact=False,
    ),
    Case(
        "aten::_native_multi_head_attention",
        _Attention(),
        f"reshape permute_dims {DQ} {HEADS} {HEADS} {HEADS} permute_dims multiply matmul nn.softmax matmul {JOINED}",
        exact=False,
    ),
    # ---- movement
    Case("aten::expand", lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1), f"expand_dims broadcast_to {DQ}"),
    Case(
        "aten::expand",
        lambda x: torch.ones(1, 8, 1, 1).expand(x.size(0), -1, -1, -1) + x.dequantize(),
        f"broadcast_to {DQ} add",
    ),
    Case("aten::expand", _Token(1, 2, 36, op=_cat_token), f"quantize reshape broadcast_to {DQ} {DQ} concat {QDQ}"),
    Case(
        "quantized::add",
        _Token(1, 8, 36, op=lambda t, x: Q.add(x, t, 0.08, 90)),
        f"quantize reshape {DQ} {DQ} add {QDQ}",
    ),
    Case("aten::roll", lambda x: torch.roll(x.dequantize(), (-2, 3), (2, -1)), f"{DQ} {CUTS} concat {CUTS} concat"),
    Case("aten::stack", lambda x: torch.stack([x.dequantize(), x.dequantize()], -1), f"{DQ} {DQ} stack"),
    Case("aten::split", lambda x: x.split(3, 1), f"strided_slice strided_slice strided_slice {DQ} {DQ} {DQ}"),
    Case("aten::split_with_sizes", lambda x: x.split([1, 5], -1), f"strided_slice strided_slice {DQ} {DQ}"),
    Case(
        "aten::unbind",
        lambda x: x[:, :2].dequantize().unbind(1),
        f"strided_slice {DQ} strided_slice squeeze strided_slice squeeze",
    ),
    Case("aten::unflatten", lambda x: x.dequantize().unflatten(1, (2, -1)), f"{DQ} reshape"),
    Case("aten::index", lambda x: x.dequantize()[:, torch.tensor([[3, -1], [0, 0]])], f"{DQ} take reshape"),
    Case("aten::index_select", lambda x: x.index_select(2, torch.tensor([5, 0, 0])), f"take reshape {DQ}"),
    Case("aten::upsample_nearest2d", lambda x: F.interpolate(x, (9, 4), mode="nearest"), f"take take {DQ}"),
    Case("aten::upsample_nearest2d", lambda x: F.interpolate(x.dequantize(), scale_factor=1.7), f"{DQ} take take"),
    Case(
        "aten::upsample_bilinear2d",
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=True),
        f"{DQ} image.resize2d {QDQ}",
    ),
    Case(
        "aten::upsample_bilinear2d",
        lambda x: F.interpolate(x.dequantize(), (9, 13), mode="bilinear"),
        f"{DQ} image.resize2d",
        exact=False,
    ),
    # ---- made at import
    Case("aten::new_zeros", _shift_mask, f"{DQ} add add"),
    Case("aten::new_ones", lambda x: x.dequantize() * x.dequantize().new_ones(6), f"{DQ} {DQ} multiply"),
    Case("aten::new_full", lambda x: x.dequantize() * x.dequantize().new_full((6,), 2.5), f"{DQ} {DQ} multiply"),
    Case("aten::remainder", _shift_mask, f"{DQ} add add"),
    # ---- scripted
    Case("aten::Bool", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::conv2d", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::Float", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::__getitem__", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::dim", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::len", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::__is__", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("aten::__isnot__", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("prim::RaiseException", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
    Case("prim::unchecked_cast", _Branches(), f"{DQ} multiply add multiply add nn.conv2d", scripted=True, exact=False),
]
