"""Products of matrices in exported programs, and attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import Expr, constant, shape_of

from .moving import reshaped
from .registry import register_exported
from .tensor_types import as_dtype, name_of, promoted, torch_dtype
from .values import ExportedBuilder


@register_exported("aten::matmul.default", "aten::mm.default", "aten::bmm.default", "aten::mv.default",
                   "aten::dot.default")  # fmt: skip
def matmul(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns the product of matrices or vectors, of floats or of integers of one dtype."""
    return product_of(b, *promoted(b, x, y))


def product_of(b: ExportedBuilder, x: Expr, y: Expr) -> Expr:
    """Returns matmul(x, y); a vector is a row on the left, a column on the right; the added dimension is removed."""
    is_row, is_column = len(shape_of(x)) == 1, len(shape_of(y)) == 1
    x = b.emit(relax.op.expand_dims(x, [0]), "row") if is_row else x
    y = b.emit(relax.op.expand_dims(y, [1]), "column") if is_column else y
    z = b.emit(relax.op.matmul(x, y, out_dtype=name_of(torch_dtype(x))), "matmul")
    ends = [-2] * is_row + [-1] * is_column
    return b.emit(relax.op.squeeze(z, ends), "matmul") if ends else z


@register_exported("aten::outer.default")
def outer(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns x_i * y_j."""
    first, second = promoted(b, x, y)
    column = b.emit(relax.op.expand_dims(first, [1]), "column")
    return b.emit(relax.op.multiply(column, second), "outer")


def weighted_sum(b: ExportedBuilder, bias: Any, product: Expr | None, beta: float, alpha: float) -> Expr:
    """Returns beta*bias + alpha*product; an operand whose factor is 0 is not read."""
    dtype = name_of(torch_dtype(product))

    def times(v: Expr, factor: float) -> Expr:
        return v if factor == 1 else b.emit(relax.op.multiply(v, constant(factor, dtype)), "mul")

    product = times(product, alpha)
    if beta == 0:
        return product
    return b.emit(relax.op.add(product, times(b.relax_of(bias), beta)), "bias")


@register_exported("aten::baddbmm.default")
def baddbmm(b: ExportedBuilder, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> Expr:
    """Returns beta*bias + alpha*matmul(x, y)."""
    return weighted_sum(b, bias, matmul(b, x, y), beta, alpha)


@register_exported("aten::scaled_dot_product_attention.default")
def attention(
    b: ExportedBuilder, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Expr:  # fmt: skip
    """Returns softmax(query @ key.T * scale + mask) @ value; scale is 1/sqrt(features) unless given.

    Raises:
        UnsupportedOpError: dropout, or a causal mask over a dynamic length.
    """
    if dropout_p:
        raise UnsupportedOpError(f"drops elements at random (dropout_p={dropout_p}), expected 0 in inference")
    query, key, value = (b.relax_of(v) for v in (query, key, value))
    if enable_gqa:
        heads = shape_of(query)[-3]
        key, value = (_repeated(b, v, heads) for v in (key, value))
    rank = len(shape_of(key))
    turned = b.emit(relax.op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2]), "key_t")
    factor = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    scaled = b.emit(relax.op.multiply(query, constant(factor, "float32")), "scaled")
    scores = b.emit(relax.op.matmul(scaled, turned), "scores")
    rows, columns = shape_of(scores)[-2:]
    if is_causal:
        if not (isinstance(rows, int) and isinstance(columns, int)):
            raise UnsupportedOpError("masks a dynamic length; use batch='static' (--batch static)")
        scores = _masked(b, scores, constant(np.tril(np.ones((rows, columns), bool)), "bool"))
    if attn_mask is not None:
        mask = b.relax_of(attn_mask)
        is_bool = torch_dtype(mask) == torch.bool
        scores = _masked(b, scores, mask) if is_bool else b.emit(relax.op.add(scores, mask), "masked")
    weights = b.emit(relax.op.nn.softmax(scores, -1), "softmax")
    return b.emit(relax.op.matmul(weights, value), "attention")


def _masked(b: ExportedBuilder, scores: Expr, mask: Expr) -> Expr:
    return b.emit(relax.op.where(mask, scores, constant(-math.inf, "float32")), "masked")


def _repeated(b: ExportedBuilder, x: Expr, heads: int) -> Expr:
    """Returns each head repeated for all of its query heads."""
    *batch, own, length, features = shape_of(x)
    count = heads // own
    if count == 1:
        return x
    each = b.emit(relax.op.concat([reshaped(b, x, [*batch, own, 1, length, features])] * count, -3), "heads")
    return reshaped(b, each, [*batch, heads, length, features])


@register_exported("aten::softmax.int", "aten::_softmax.default")
def softmax(b: ExportedBuilder, x: Any, dim: int, dtype: Any = None) -> Expr:
    """Returns exp(x) / sum(exp(x)) along `dim`."""
    return _normalized(b, x, dim, dtype, relax.op.nn.softmax)


@register_exported("aten::log_softmax.int", "aten::_log_softmax.default")
def log_softmax(b: ExportedBuilder, x: Any, dim: int, dtype: Any = None) -> Expr:
    """Returns x - log(sum(exp(x))) along `dim`."""
    return _normalized(b, x, dim, dtype, relax.op.nn.log_softmax)


def _normalized(b: ExportedBuilder, x: Any, dim: int, dtype: Any, op: Any) -> Expr:
    x = b.relax_of(x)
    x = as_dtype(b, x, dtype) if isinstance(dtype, torch.dtype) else x
    if shape_of(x):
        return b.emit(op(x, dim), "softmax")
    y = b.emit(op(reshaped(b, x, [1]), 0), "softmax")
    return reshaped(b, y, [])
