"""aten operators of exported programs whose Relax form the lowering relies on, or that TVM's importer does not have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import ModelImportError

from .builder import Expr, constant, shape_of
from .exported_registry import register_exported
from .exported_torchao import Accumulators, Raised, RaisedProduct, lowered, raised, scaled, shifted
from .exported_values import ExportedBuilder
from .registry import find_converter

SHARED = {
    "aten::relu.default": "aten::relu",
    "aten::relu_.default": "aten::relu",
    "aten::relu6.default": "aten::relu6",
    "aten::relu6_.default": "aten::relu6",
    "aten::hardtanh.default": "aten::hardtanh",
    "aten::hardtanh_.default": "aten::hardtanh",
    "aten::clamp.default": "aten::clamp",
    "aten::clamp_.default": "aten::clamp",
    "aten::hardsigmoid.default": "aten::hardsigmoid",
    "aten::hardsigmoid_.default": "aten::hardsigmoid",
    "aten::sigmoid.default": "aten::sigmoid",
    "aten::sigmoid_.default": "aten::sigmoid",
    "aten::max_pool2d.default": "aten::max_pool2d",
    "aten::avg_pool2d.default": "aten::avg_pool2d",
    "aten::adaptive_avg_pool2d.default": "aten::adaptive_avg_pool2d",
    "aten::mean.dim": "aten::mean",
    "aten::cat.default": "aten::cat",
    "aten::flatten.using_ints": "aten::flatten",
    "aten::transpose.int": "aten::transpose",
    "aten::permute.default": "aten::permute",
    "aten::unsqueeze.default": "aten::unsqueeze",
    "aten::squeeze.dim": "aten::squeeze",
    "aten::slice.Tensor": "aten::slice",
    "aten::select.int": "aten::select",
    "aten::chunk.default": "aten::chunk",
    "aten::pad.default": "aten::pad",
    "aten::constant_pad_nd.default": "aten::constant_pad_nd",
    "aten::softmax.int": "aten::softmax",
    "aten::upsample_nearest2d.vec": "aten::upsample_nearest2d",
}
"""Operators that TorchScript programs have too: the converter there serves float tensors of an exported program."""

TO_EVAL = "call torchao.quantization.pt2e.move_exported_model_to_eval(model), or model.eval() before torch.export"


def shared_converter(name: str) -> Any:
    """Returns the converter of a TorchScript operator that serves the exported one, or None."""
    return find_converter(SHARED[name]) if name in SHARED else None


@register_exported("aten::contiguous.default", "aten::clone.default", "aten::detach.default", "aten::alias.default",
                   "aten::detach_.default", "aten::lift_fresh_copy.default")  # fmt: skip
def identity(b: ExportedBuilder, x: Any, memory_format: Any = None) -> Any:
    """Returns x: nothing is written to in place."""
    return x


@register_exported("aten::dropout.default", "aten::dropout_.default", "aten::feature_dropout.default")
def dropout(b: ExportedBuilder, x: Any, p: float, train: bool) -> Any:
    """Returns x: dropout does nothing in inference."""
    if train:
        raise ModelImportError(f"is in training mode; {TO_EVAL}")
    return x


@register_exported("aten::sym_size.int")
def sym_size(b: ExportedBuilder, x: Any, dim: int) -> Any:
    """Returns one size; a dynamic one as a symbolic expression."""
    return shape_of(getattr(x, "integers", x))[dim]


def _channels(value: Any, rank: int) -> Any:
    """Returns a constant (C,) as (1, C, 1, ...)."""
    return constant(value.detach().numpy().reshape((1, -1, *(1,) * (rank - 2))), "float32")


def _expect_constant(value: Any, what: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ModelImportError(f"its {what} is computed at run time, expected a constant")
    return value


def _biased(b: ExportedBuilder, y: Expr, bias: Any, rank: int) -> Expr:
    if bias is None:
        return y
    if rank > 0:
        return b.emit(relax.op.add(y, _channels(_expect_constant(bias, "bias"), rank)), "bias")
    return b.emit(relax.op.add(y, b.relax_of(bias)), "bias")


def _conv(
    b: ExportedBuilder, x: Expr, weight: Any, bias: Any, stride: Any, padding: list[int], dilation: Any, groups: int
) -> Expr:
    x, w = b.relax_of(x), b.relax_of(weight)
    if len(shape_of(x)) != 4:
        raise ModelImportError(f"takes a tensor of {len(shape_of(x))} dimensions, expected 4 (N, C, H, W)")
    y = relax.op.nn.conv2d(
        x, w, strides=_pair(stride), padding=padding, dilation=_pair(dilation), groups=groups,
        data_layout="NCHW", kernel_layout="OIHW", out_dtype="float32",
    )  # fmt: skip
    return _biased(b, b.emit(y, "conv"), bias, 4)


def _pair(values: Sequence[int] | int) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    return values * 2 if len(values) == 1 else values


@register_exported("aten::conv2d.default")
def conv2d(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Expr:  # fmt: skip
    """Returns the convolution of x with the weight, plus a bias of shape (1, C, 1, 1)."""
    return _conv(b, x, weight, bias, stride, _pair(padding) * 2, dilation, groups)


@register_exported("aten::conv2d.padding")
def conv2d_padding(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: str = "valid",
    dilation: Any = 1, groups: int = 1,
) -> Expr:  # fmt: skip
    """Returns conv2d(x, weight) + bias with padding `valid` or `same`; an odd rest is padded after."""
    integers = getattr(weight, "integers", weight)
    kernel = list(integers.shape if isinstance(integers, torch.Tensor) else shape_of(integers))[2:]
    totals = [d * (int(k) - 1) if padding == "same" else 0 for d, k in zip(_pair(dilation), kernel, strict=True)]
    before = [total // 2 for total in totals]
    after = [total - first for total, first in zip(totals, before, strict=True)]
    return _conv(b, x, weight, bias, stride, [*before, *after], dilation, groups)


@register_exported("aten::linear.default")
def linear(b: ExportedBuilder, x: Any, weight: Any, bias: Any = None) -> Expr:
    """Returns matmul(x, permute_dims(weight)) + bias; a float weight is stored transposed."""
    if isinstance(weight, torch.Tensor):
        transposed = b.relax_of(weight.T)
    else:
        transposed = b.emit(relax.op.permute_dims(b.relax_of(weight), [1, 0]), "weight_t")
    y = b.emit(relax.op.matmul(b.relax_of(x), transposed), "linear")
    return _biased(b, y, bias, 2 if len(shape_of(y)) == 2 and isinstance(bias, torch.Tensor) else 0)


@register_exported("aten::addmm.default")
def addmm(b: ExportedBuilder, bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> Expr:
    """Returns matmul(x, weight) + bias."""
    if (alpha, beta) != (1, 1):
        raise ModelImportError(f"has alpha={alpha} and beta={beta}, expected 1")
    y = b.emit(relax.op.matmul(b.relax_of(x), b.relax_of(weight)), "linear")
    is_row = isinstance(bias, torch.Tensor) and bias.ndim == 1
    return _biased(b, y, bias, 2 if is_row else 0)


@register_exported("aten::batch_norm.default")
def batch_norm(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Expr:  # fmt: skip
    """Returns x*a + c with a = weight/sqrt(var + eps), c = bias - mean*a: float32 throughout, as ATen's CPU kernel."""
    if training or running_mean is None:
        raise ModelImportError(f"is in training mode; {TO_EVAL}")
    mean, var = (_expect_constant(v, "statistics").detach().numpy() for v in (running_mean, running_var))
    factor = np.float32(1.0) / np.sqrt(var + np.float32(eps))
    factor = factor if weight is None else factor * _expect_constant(weight, "weight").detach().numpy()
    offset = np.float32(0) if bias is None else _expect_constant(bias, "bias").detach().numpy()
    term = offset - mean * factor
    x = b.relax_of(x)
    shape = (1, -1, *(1,) * (len(shape_of(x)) - 2))
    y = b.emit(relax.op.multiply(x, constant(factor.reshape(shape), "float32")), "scale")
    return b.emit(relax.op.add(y, constant(term.reshape(shape), "float32")), "shift")


@register_exported("aten::layer_norm.default")
def layer_norm(
    b: ExportedBuilder, x: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Expr:  # fmt: skip
    """Returns (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions."""
    scale = constant(np.ones(normalized_shape), "float32") if weight is None else b.relax_of(weight)
    shift = constant(np.zeros(normalized_shape), "float32") if bias is None else b.relax_of(bias)
    axes = list(range(-len(normalized_shape), 0))
    return b.emit(relax.op.nn.layer_norm(b.relax_of(x), scale, shift, axes=axes, epsilon=eps), "layer_norm")


@register_exported("aten::hardswish.default", "aten::hardswish_.default")
def hardswish(b: ExportedBuilder, x: Any) -> Expr:
    """Returns x * min(max(x+3, 0), 6) / 6, in this order as ATen's CPU kernel."""
    first, second = b.relax_of(x), b.relax_of(x)
    gate = b.emit(relax.op.clip(b.emit(relax.op.add(second, constant(3.0, "float32")), "plus_3"), 0, 6), "clip")
    return b.emit(relax.op.divide(b.emit(relax.op.multiply(first, gate), "mul"), constant(6.0, "float32")), "hardswish")


def _operands(b: ExportedBuilder, x: Any, y: Any) -> tuple[Expr, Expr]:
    operands = [constant(v, "float32") if isinstance(v, (int, float)) else b.relax_of(v) for v in (x, y)]
    dtypes = [str(v.ty.dtype) for v in operands]
    if dtypes != ["float32", "float32"]:
        raise ModelImportError(f"takes {' and '.join(dtypes)}, expected float32")
    return operands[0], operands[1]


def _is_size(*values: Any) -> bool:
    """Whether the values are sizes, not tensors."""
    return not any(hasattr(v, "ty") and isinstance(v.ty, relax.TensorType) for v in values) and not any(
        isinstance(v, torch.Tensor) or hasattr(v, "integers") for v in values
    )


@register_exported("aten::add.Tensor", "aten::add_.Tensor", "aten::add.Scalar")
def add(b: ExportedBuilder, x: Any, y: Any, alpha: float = 1) -> Any:
    """Returns x + alpha*y."""
    if isinstance(x, Raised) and alpha == 1:
        return raised(b, x, y)
    if _is_size(x, y):
        return x + alpha * y
    first, second = _operands(b, x, y)
    if alpha != 1:
        second = b.emit(relax.op.multiply(second, constant(float(alpha), "float32")), "alpha")
    return b.emit(relax.op.add(first, second), "add")


@register_exported("aten::sub.Tensor", "aten::sub_.Tensor", "aten::sub.Scalar")
def sub(b: ExportedBuilder, x: Any, y: Any, alpha: float = 1) -> Any:
    """Returns x - alpha*y."""
    if isinstance(x, Accumulators) and alpha == 1:
        return shifted(b, x, y)
    if isinstance(x, RaisedProduct) and alpha == 1:
        return lowered(b, x, y)
    first, second = _operands(b, x, y)
    if alpha != 1:
        second = b.emit(relax.op.multiply(second, constant(float(alpha), "float32")), "alpha")
    return b.emit(relax.op.subtract(first, second), "sub")


@register_exported("aten::mul.Tensor", "aten::mul_.Tensor", "aten::mul.Scalar")
def mul(b: ExportedBuilder, x: Any, y: Any) -> Any:
    """Returns x * y."""
    if isinstance(x, Accumulators):
        return scaled(b, x, y)
    if _is_size(x, y):
        return x * y
    return b.emit(relax.op.multiply(*_operands(b, x, y)), "mul")


@register_exported("aten::div.Tensor", "aten::div_.Tensor", "aten::div.Scalar")
def div(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns x / y."""
    return b.emit(relax.op.divide(*_operands(b, x, y)), "div")


@register_exported("aten::split.Tensor", "aten::split_with_sizes.default")
def split(b: ExportedBuilder, x: Any, sizes: Any, dim: int = 0) -> list[Expr]:
    """Returns slices of the given size, the last one perhaps smaller, or of the given sizes."""
    cut = find_converter("aten::slice")
    assert cut is not None
    x = b.relax_of(x)
    total = shape_of(x)[dim]
    bounds = [*range(0, total, sizes), total] if isinstance(sizes, int) else [0, *np.cumsum(sizes).tolist()]
    return [cut(b, x, dim, first, last) for first, last in pairwise(bounds)]
