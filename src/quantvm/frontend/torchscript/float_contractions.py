"""Convolution, linear, matrix products and attention of float islands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, constant, constant_array, shape_of
from quantvm.frontend.registry import register_converter
from quantvm.qdq.expressions import is_constant

from .float_elementwise import float_operands


def _transposed(b: QdqBuilder, weight: Expr) -> Expr:
    """Returns an (out, in) weight as (in, out); a constant is transposed at import."""
    if is_constant(weight):
        return constant(np.ascontiguousarray(constant_array(weight).T), "float32")
    return b.emit(relax.op.permute_dims(weight, [1, 0]), "weight_t")


@register_converter("aten::linear")
def linear(b: QdqBuilder, x: Any, weight: Expr, bias: Expr | None = None) -> Expr:
    """Returns x @ weight.T + bias of float tensors."""
    (x,) = float_operands(b, "linear", x)
    y = b.emit(relax.op.matmul(x, _transposed(b, weight)), "linear")
    return y if bias is None else b.emit(relax.op.add(y, bias), "bias")


@register_converter("aten::matmul", "aten::bmm")
def matmul(b: QdqBuilder, x: Any, y: Any) -> Expr:
    """Returns x @ y of float tensors, batched and broadcast."""
    return b.emit(relax.op.matmul(*float_operands(b, "matmul", x, y)), "matmul")


@register_converter("aten::addmm")
def addmm(b: QdqBuilder, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Expr:
    """Returns bias + x @ y of float tensors."""
    if (beta, alpha) != (1, 1):
        raise ModelImportError(f"addmm at {b.where} with beta={beta}, alpha={alpha} is not supported, expected 1")
    return b.emit(relax.op.add(matmul(b, x, y), bias), "bias")


@register_converter("aten::einsum")
def einsum(b: QdqBuilder, equation: str, operands: Sequence[Any], path: Any = None) -> Expr:
    """Returns the Einstein sum of float tensors."""
    return b.emit(relax.op.einsum(tuple(float_operands(b, "einsum", *operands)), equation.replace(" ", "")), "einsum")


@register_converter("aten::conv2d")
def conv2d(
    b: QdqBuilder, x: Any, weight: Expr, bias: Expr | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Expr:  # fmt: skip
    """Returns the convolution of float tensors."""
    if isinstance(padding, str):
        raise ModelImportError(f"conv2d at {b.where} with padding={padding!r} is not supported, expected numbers")
    return _convolution(b, x, weight, bias, stride, padding, dilation, groups)


@register_converter("aten::_convolution")
def convolution(
    b: QdqBuilder, x: Any, weight: Expr, bias: Expr | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, *flags: Any,
) -> Expr:  # fmt: skip
    """Returns the two-dimensional convolution of float tensors."""
    if transposed:
        raise ModelImportError(f"transposed convolution at {b.where} is not supported")
    return _convolution(b, x, weight, bias, stride, padding, dilation, groups)


def _convolution(
    b: QdqBuilder, x: Any, weight: Expr, bias: Expr | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Expr:
    (x,) = float_operands(b, "conv2d", x)
    if len(shape_of(x)) != 4:
        raise ModelImportError(f"convolution at {b.where} of a tensor with {len(shape_of(x))} dimensions, expected 4")
    strides, pads, dilations = ([v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
    strides, pads, dilations = (v * 2 if len(v) == 1 else v for v in (strides, pads, dilations))
    y = relax.op.nn.conv2d(
        x, weight, strides=strides, padding=[*pads, *pads], dilation=dilations, groups=groups,
        data_layout="NCHW", kernel_layout="OIHW", out_dtype="float32",
    )  # fmt: skip
    y = b.emit(y, "conv")
    return y if bias is None else b.emit(relax.op.add(y, relax.op.reshape(bias, (1, -1, 1, 1))), "bias")


# ------------------------------------------------------------------ attention


def _attention(b: QdqBuilder, query: Expr, key: Expr, value: Expr, mask: Expr | None, scale: float) -> Expr:
    """Emits softmax(query @ key.T * scale + mask) @ value over the last two dimensions."""
    axes = list(range(len(shape_of(key))))
    axes[-2], axes[-1] = axes[-1], axes[-2]
    key_t = b.emit(relax.op.permute_dims(key, axes), "key_t")
    scaled = b.emit(relax.op.multiply(query, constant(scale, "float32")), "scaled")
    scores = b.emit(relax.op.matmul(scaled, key_t), "scores")
    if mask is not None:
        scores = b.emit(relax.op.add(scores, mask), "masked")
    return b.emit(relax.op.matmul(b.emit(relax.op.nn.softmax(scores, -1), "softmax"), value), "attention")


def _additive(b: QdqBuilder, mask: Expr | None) -> Expr | None:
    """Returns the term to add to the scores; a boolean mask, true where attention is allowed, becomes 0 and -inf."""
    if mask is None or str(mask.ty.dtype) != "bool":
        return mask
    return b.emit(relax.op.where(mask, constant(0.0, "float32"), constant(-math.inf, "float32")), "mask")


@register_converter("aten::scaled_dot_product_attention")
def scaled_dot_product_attention(
    b: QdqBuilder, query: Any, key: Any, value: Any, mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Expr:  # fmt: skip
    """Returns softmax(query @ key.T * scale + mask) @ value of float tensors."""
    query, key, value = float_operands(b, "scaled_dot_product_attention", query, key, value)
    if dropout_p or enable_gqa:
        raise ModelImportError(f"attention at {b.where} with dropout or grouped queries is not supported")
    rows, columns = shape_of(query)[-2], shape_of(key)[-2]
    if is_causal:
        if not (isinstance(rows, int) and isinstance(columns, int)):
            raise ModelImportError(f"causal attention at {b.where} over a dynamic length is not supported")
        mask = constant(np.tril(np.ones((rows, columns), bool)), "bool")
    scale = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    return _attention(b, query, key, value, _additive(b, mask), scale)


@register_converter("aten::_native_multi_head_attention")
def native_multi_head_attention(
    b: QdqBuilder, query: Any, key: Any, value: Any, embed_dim: int, num_head: int, qkv_weight: Expr, qkv_bias: Expr,
    proj_weight: Expr, proj_bias: Expr, mask: Any = None, need_weights: bool = True,
    average_attn_weights: bool = True, mask_type: int | None = None,
) -> tuple[Expr, None]:  # fmt: skip
    """Returns nn.MultiheadAttention of float (batch, length, embed_dim) tensors, and no attention weights."""
    if need_weights or mask is not None:
        raise ModelImportError(
            f"attention at {b.where} with a mask, or whose weights are needed, is not supported; "
            "call nn.MultiheadAttention with need_weights=False"
        )
    n, length, _ = shape_of(query)
    width = embed_dim // num_head
    heads = []
    parts = zip(_split_in_three(qkv_weight), _split_in_three(qkv_bias), (query, key, value), strict=True)
    for weight, bias, x in parts:
        y = linear(b, x, weight, bias)
        split = b.emit(relax.op.reshape(y, relax.ShapeExpr([n, shape_of(x)[1], num_head, width])), "heads")
        heads.append(b.emit(relax.op.permute_dims(split, [0, 2, 1, 3]), "heads_t"))
    y = _attention(b, heads[0], heads[1], heads[2], None, 1 / math.sqrt(width))
    joined = b.emit(relax.op.permute_dims(y, [0, 2, 1, 3]), "joined")
    joined = b.emit(relax.op.reshape(joined, relax.ShapeExpr([n, length, embed_dim])), "joined")
    return linear(b, joined, proj_weight, proj_bias), None


def _split_in_three(stacked: Expr) -> list[Expr]:
    return [constant(part, "float32") for part in np.split(constant_array(stacked), 3)]
