"""Arithmetic, linear layers and no-ops of exported programs, in the forms that lowering expects."""

from __future__ import annotations

from typing import Any

import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.frontend.registry import find_converter

from .creation import full_like
from .moving import reshaped
from .norms import TO_EVAL
from .products import product_of, weighted_sum
from .registry import register_exported
from .tensor_types import float_dtype, name_of, promoted, tensor_of, torch_dtype
from .torchao_operators import Accumulators, OffsetIntegers, OffsetProduct, scaled, shifted, with_addend, without_offset
from .values import ExportedBuilder

SHARED = {
    "aten::relu.default": "aten::relu",
    "aten::relu_.default": "aten::relu",
    "aten::relu6.default": "aten::relu6",
    "aten::relu6_.default": "aten::relu6",
    "aten::transpose.int": "aten::transpose",
    "aten::permute.default": "aten::permute",
    "aten::unsqueeze.default": "aten::unsqueeze",
    "aten::select.int": "aten::select",
    "aten::chunk.default": "aten::chunk",
    "aten::split.Tensor": "aten::split",
    "aten::split_with_sizes.default": "aten::split",
    "aten::upsample_nearest2d.vec": "aten::upsample_nearest2d",
}
"""Operators that TorchScript has too; its converters also handle float tensors of exported programs."""


def shared_converter(name: str) -> Any:
    """Returns the TorchScript converter that also handles an exported operator, or None."""
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


@register_exported("aten::linear.default")
def linear(b: ExportedBuilder, x: Any, weight: Any, bias: Any = None) -> Expr:
    """Returns matmul(x, permute_dims(weight)) + bias; a float weight is stored transposed."""
    if isinstance(weight, torch.Tensor):
        transposed = b.relax_of(weight.T)
    else:
        transposed = b.emit(relax.op.permute_dims(b.relax_of(weight), [1, 0]), "weight_t")
    x = b.relax_of(x)
    if len(shape_of(x)) == 1:
        return _biased(b, product_of(b, x, transposed), bias)
    return _biased(b, b.emit(relax.op.matmul(x, transposed), "linear"), bias)


def _biased(b: ExportedBuilder, y: Expr, bias: Any) -> Expr:
    """Returns y + bias; a constant bias of a matrix product becomes a row (1, C)."""
    if bias is None:
        return y
    if isinstance(bias, torch.Tensor) and bias.ndim == 1 and len(shape_of(y)) == 2:
        return b.emit(relax.op.add(y, constant(bias.detach().numpy().reshape(1, -1), "float32")), "bias")
    return b.emit(relax.op.add(y, b.relax_of(bias)), "bias")


@register_exported("aten::addmm.default")
def addmm(b: ExportedBuilder, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Expr:
    """Returns beta*bias + alpha*matmul(x, weight)."""
    y = b.emit(relax.op.matmul(b.relax_of(x), b.relax_of(weight)), "linear")
    return _biased(b, y, bias) if (alpha, beta) == (1, 1) else weighted_sum(b, bias, y, beta, alpha)


def _is_size(*values: Any) -> bool:
    """Returns whether the values are sizes, not tensors."""
    return not any(hasattr(v, "ty") and isinstance(v.ty, relax.TensorType) for v in values) and not any(
        isinstance(v, torch.Tensor) or hasattr(v, "integers") for v in values
    )


@register_exported("aten::add.Tensor", "aten::add_.Tensor", "aten::add.Scalar")
def add(b: ExportedBuilder, x: Any, y: Any, alpha: Any = 1) -> Any:
    """Returns x + alpha*y, after promotion; for booleans, x or y."""
    if isinstance(x, OffsetIntegers) and alpha == 1:
        return with_addend(b, x, y)
    if _is_size(x, y):
        return x + alpha * y
    first, second = promoted(b, x, y)
    if torch_dtype(first) == torch.bool and alpha == 1:
        return b.emit(relax.op.logical_or(first, second), "add")
    return b.emit(relax.op.add(first, _times(b, second, alpha)), "add")


@register_exported("aten::sub.Tensor", "aten::sub_.Tensor", "aten::sub.Scalar")
def sub(b: ExportedBuilder, x: Any, y: Any, alpha: Any = 1) -> Any:
    """Returns x - alpha*y, after promotion."""
    if isinstance(x, Accumulators) and alpha == 1:
        return shifted(b, x, y)
    if isinstance(x, OffsetProduct) and alpha == 1:
        return without_offset(b, x, y)
    first, second = promoted(b, x, y)
    return b.emit(relax.op.subtract(first, _times(b, second, alpha)), "sub")


def _times(b: ExportedBuilder, x: Expr, alpha: Any) -> Expr:
    return x if alpha == 1 else b.emit(relax.op.multiply(x, constant(alpha, name_of(torch_dtype(x)))), "alpha")


@register_exported("aten::mul.Tensor", "aten::mul_.Tensor", "aten::mul.Scalar")
def mul(b: ExportedBuilder, x: Any, y: Any) -> Any:
    """Returns x * y, after promotion; for booleans, x and y."""
    if isinstance(x, Accumulators):
        return scaled(b, x, y)
    if _is_size(x, y):
        return x * y
    first, second = promoted(b, x, y)
    op = relax.op.logical_and if torch_dtype(first) == torch.bool else relax.op.multiply
    return b.emit(op(first, second), "mul")


@register_exported("aten::div.Tensor", "aten::div_.Tensor", "aten::div.Scalar")
def div(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns x / y; integers are divided as float32."""
    operands = [tensor_of(b, x), tensor_of(b, y)]
    return b.emit(relax.op.divide(*promoted(b, *operands, dtype=float_dtype(operands))), "div")


@register_exported("aten::native_dropout.default")
def native_dropout(b: ExportedBuilder, x: Any, p: float, train: bool | None) -> list[Any]:
    """Returns [x, a mask that is true everywhere]: dropout does nothing in inference."""
    x = dropout(b, x, p, bool(train))
    return [x, torch.tensor(True) if not shape_of(b.relax_of(x)) else full_like(b, x, True, dtype=torch.bool)]


@register_exported("aten::item.default", "aten::_local_scalar_dense.default")
def item(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the only element of a tensor, as a tensor without dimensions."""
    x = b.relax_of(x)
    return reshaped(b, x, []) if shape_of(x) else x
