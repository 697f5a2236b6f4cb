"""Normalizations, on quantized and on float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant, constant_array, shape_of
from quantvm.frontend.registry import register_converter
from quantvm.numerics.normalization import batch_norm_affine

from .float_elementwise import float_operands


def _affine(b: QdqBuilder, x: Expr, statistics: Sequence[Expr | None], eps: float) -> Expr:
    """Emits x * factor + term, with factor and term computed from weight, bias, mean and variance."""
    weight, bias, mean, variance = (None if s is None else constant_array(s) for s in statistics)
    if mean is None or variance is None:
        raise ModelImportError(f"batch_norm at {b.where} has no running statistics, or is in training mode")
    weight = np.ones_like(mean) if weight is None else weight
    factors, terms = batch_norm_affine(weight, np.zeros_like(mean) if bias is None else bias, mean, variance, eps)
    shape = (1, -1, *(1,) * (len(shape_of(x)) - 2))
    product = b.emit(relax.op.multiply(x, constant(factors.reshape(shape), "float32")), "factor")
    return b.emit(relax.op.add(product, constant(terms.reshape(shape), "float32")), "term")


def _quantized_batch_norm(
    b: QdqBuilder, x: Any, statistics: Sequence[Expr | None], eps: float, out: tuple[float, int], relu: bool
) -> QTensor:
    b.expect_quantized("quantized::batch_norm2d", x)
    y = _affine(b, b.real(x), statistics, eps)
    y = b.emit(relax.op.nn.relu(y), "relu") if relu else y
    return b.quantized(y, b.params(*out, x.q.dtype))


@register_converter("quantized::batch_norm2d", "quantized::batch_norm")
def quantized_batch_norm2d(
    b: QdqBuilder, x: Any, weight: Expr | None, bias: Expr | None, mean: Expr, var: Expr, eps: float,
    output_scale: float, output_zero_point: int,
) -> QTensor:  # fmt: skip
    """Returns quantize(batch_norm(dequantize(x)))."""
    return _quantized_batch_norm(b, x, (weight, bias, mean, var), eps, (output_scale, output_zero_point), relu=False)


@register_converter("quantized::batch_norm2d_relu")
def quantized_batch_norm2d_relu(
    b: QdqBuilder, x: Any, weight: Expr | None, bias: Expr | None, mean: Expr, var: Expr, eps: float,
    output_scale: float, output_zero_point: int,
) -> QTensor:  # fmt: skip
    """Returns quantize(relu(batch_norm(dequantize(x))))."""
    return _quantized_batch_norm(b, x, (weight, bias, mean, var), eps, (output_scale, output_zero_point), relu=True)


@register_converter("aten::batch_norm")
def batch_norm(
    b: QdqBuilder, x: Any, weight: Expr | None, bias: Expr | None, mean: Expr | None, var: Expr | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Expr:  # fmt: skip
    """Returns batch normalization of a float tensor by its running statistics."""
    (x,) = float_operands(b, "batch_norm", x)
    if training:
        raise ModelImportError(f"batch_norm at {b.where} is in training mode; call model.eval() before tracing")
    return _affine(b, x, (weight, bias, mean, var), eps)


def _layer_norm(
    b: QdqBuilder, x: Expr, normalized_shape: Sequence[int], weight: Expr | None, bias: Expr | None, eps: float
) -> Expr:
    size = tuple(normalized_shape)
    gamma = constant(np.ones(size), "float32") if weight is None else weight
    beta = constant(np.zeros(size), "float32") if bias is None else bias
    return b.emit(relax.op.nn.layer_norm(x, gamma, beta, list(range(-len(size), 0)), eps), "layer_norm")


@register_converter("quantized::layer_norm")
def quantized_layer_norm(
    b: QdqBuilder, x: Any, normalized_shape: Sequence[int], weight: Expr | None, bias: Expr | None, eps: float,
    output_scale: float, output_zero_point: int,
) -> QTensor:  # fmt: skip
    """Returns quantize(layer_norm(dequantize(x)))."""
    b.expect_quantized("quantized::layer_norm", x)
    y = _layer_norm(b, b.real(x), normalized_shape, weight, bias, eps)
    return b.quantized(y, b.params(output_scale, output_zero_point, x.q.dtype))


@register_converter("aten::layer_norm")
def layer_norm(
    b: QdqBuilder, x: Any, normalized_shape: Sequence[int], weight: Expr | None = None, bias: Expr | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = False,
) -> Expr:  # fmt: skip
    """Returns layer normalization of a float tensor."""
    (x,) = float_operands(b, "layer_norm", x)
    return _layer_norm(b, x, normalized_shape, weight, bias, eps)
