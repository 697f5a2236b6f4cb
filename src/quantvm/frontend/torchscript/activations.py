"""Activations, on quantized and on float tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant, constant_array, shape_of
from quantvm.frontend.registry import register_converter
from quantvm.numerics.torch_engines import QuantParams

from .float_elementwise import float_operands


def _gate(b: QdqBuilder, x: Expr) -> Expr:
    """Returns min(max(x + 3, 0), 6)."""
    return b.emit(relax.op.clip(b.emit(relax.op.add(x, constant(3.0, "float32")), "plus_3"), 0, 6), "clip")


@register_converter("quantized::hardswish")
def hardswish(b: QdqBuilder, x: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(x * min(max(x+3, 0), 6) / 6)."""
    b.expect_quantized("quantized::hardswish", x)
    real = b.real(x)
    y = b.emit(relax.op.multiply(real, _gate(b, real)), "mul")
    y = b.emit(relax.op.divide(y, constant(6.0, "float32")), "hardswish")
    return b.quantized(y, b.params(output_scale, output_zero_point, x.q.dtype))


# What ATen fixes for outputs in [0, 1) and in (-1, 1), by the dtype.
_UNIT_INTERVAL = {"uint8": QuantParams(1.0 / 256.0, 0), "int8": QuantParams(1.0 / 256.0, -128, "int8")}
_AROUND_ZERO = {"uint8": QuantParams(1.0 / 128.0, 128), "int8": QuantParams(1.0 / 128.0, 0, "int8")}


@register_converter("aten::hardsigmoid", "aten::hardsigmoid_")
def hardsigmoid(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns min(max(x+3, 0), 6) / 6; a quantized result has scale 1/256 and the least integer for 0."""
    y = b.emit(relax.op.divide(_gate(b, b.real(x)), constant(6.0, "float32")), "hardsigmoid")
    return b.quantized(y, _UNIT_INTERVAL[x.q.dtype]) if isinstance(x, QTensor) else y


@register_converter("aten::sigmoid", "aten::sigmoid_")
def sigmoid(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns 1 / (1 + exp(-x)); a quantized result has scale 1/256 and the least integer for 0."""
    y = b.emit(relax.op.sigmoid(b.real(x)), "sigmoid")
    return b.quantized(y, _UNIT_INTERVAL[x.q.dtype]) if isinstance(x, QTensor) else y


@register_converter("quantized::leaky_relu")
def quantized_leaky_relu(
    b: QdqBuilder, x: Any, negative_slope: float, inplace: bool, output_scale: float, output_zero_point: int
) -> QTensor:
    """Returns quantize(x > 0 ? x : negative_slope * x)."""
    b.expect_quantized("quantized::leaky_relu", x)
    x = b.without_gaps(x)
    y = b.emit(relax.op.nn.leakyrelu(b.real(x), negative_slope), "leaky_relu")
    return b.quantized(y, b.params(output_scale, output_zero_point, x.q.dtype))


@register_converter("quantized::sigmoid")
def quantized_sigmoid(b: QdqBuilder, x: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(1 / (1 + exp(-x)))."""
    b.expect_quantized("quantized::sigmoid", x)
    return b.quantized(
        b.emit(relax.op.sigmoid(b.real(x)), "sigmoid"), b.params(output_scale, output_zero_point, x.q.dtype)
    )


@register_converter("aten::tanh", "aten::tanh_")
def tanh(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns the hyperbolic tangent; a quantized result has scale 1/128 and zero point 128."""
    y = b.emit(relax.op.tanh(b.real(x)), "tanh")
    return b.quantized(y, _AROUND_ZERO[x.q.dtype]) if isinstance(x, QTensor) else y


@register_converter("quantized::elu")
def quantized_elu(
    b: QdqBuilder, x: Any, output_scale: float, output_zero_point: int, alpha: float = 1.0, scale: float = 1.0,
    input_scale: float = 1.0,
) -> QTensor:  # fmt: skip
    """Returns quantize(scale * (x > 0 ? x : alpha * (exp(input_scale*x) - 1)))."""
    b.expect_quantized("quantized::elu", x)
    real, zero = b.real(x), constant(0.0, "float32")

    def times(y: Expr, factor: float) -> Expr:  # by 1, too: this form is what the lowering knows
        return b.emit(relax.op.multiply(y, constant(factor, "float32")), "mul")

    exp = b.emit(relax.op.exp(times(b.emit(relax.op.minimum(real, zero), "below"), input_scale)), "exp")
    curve = times(b.emit(relax.op.subtract(exp, constant(1.0, "float32")), "minus_1"), alpha)
    y = times(b.emit(relax.op.add(b.emit(relax.op.maximum(real, zero), "above"), curve), "elu"), scale)
    return b.quantized(y, b.params(output_scale, output_zero_point, x.q.dtype))


@register_converter("quantized::prelu")
def quantized_prelu(b: QdqBuilder, x: Any, weight: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(x > 0 ? x : w * x), with one w or one a channel, in PyTorch's integer arithmetic."""
    b.expect_quantized("quantized::prelu", x)
    dtype = str(weight.int_repr().dtype).removeprefix("torch.")
    if dtype != x.q.dtype:
        raise ModelImportError(
            f"quantized::prelu at {b.where}: slopes of dtype {dtype}, expected {x.q.dtype} as the input"
        )
    axis = 1 if len(shape_of(x)) > 1 else 0
    slopes = np.broadcast_to(weight.int_repr().numpy().reshape(-1), (shape_of(x)[axis],))
    q = b.params(weight.q_scale(), weight.q_zero_point(), dtype)
    slope = b.real(QTensor(constant(slopes, dtype), q))
    y = b.emit(relax.op.nn.prelu(b.real(x), slope, axis=axis), "prelu")
    return b.quantized(y, b.params(output_scale, output_zero_point, x.q.dtype))


@register_converter("aten::prelu")
def prelu(b: QdqBuilder, x: Any, weight: Expr) -> Expr:
    """Returns x > 0 ? x : w * x of a float tensor, with one w or one a channel."""
    (x,) = float_operands(b, "prelu", x)
    slopes = constant(np.broadcast_to(constant_array(weight), (shape_of(x)[1],)), "float32")
    return b.emit(relax.op.nn.prelu(x, slopes, axis=1), "prelu")


@register_converter("aten::leaky_relu", "aten::leaky_relu_")
def leaky_relu(b: QdqBuilder, x: Any, negative_slope: float = 0.01) -> QTensor | Expr:
    """Returns x > 0 ? x : negative_slope * x under the input's parameters."""
    x = b.without_gaps(x)
    return b.quantized_like(x, b.emit(relax.op.nn.leakyrelu(b.real(x), negative_slope), "leaky_relu"))


@register_converter("aten::relu", "aten::relu_")
def relu(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns max(x, 0) under the input's parameters."""
    return relu_of(b, x)


def relu_of(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Emits max(x, 0) under the input's parameters."""
    return b.quantized_like(x, b.emit(relax.op.nn.relu(b.real(x)), "relu"))


def _clip(b: QdqBuilder, x: Any, low: float | None, high: float | None) -> QTensor | Expr:
    limits = (-3.4e38 if low is None else float(low), 3.4e38 if high is None else float(high))
    return b.quantized_like(x, b.emit(relax.op.clip(b.real(x), *limits), "clip"))


@register_converter("aten::relu6", "aten::relu6_")
def relu6(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns min(max(x, 0), 6) under the input's parameters."""
    return _clip(b, x, 0.0, 6.0)


@register_converter("quantized::relu6")
def quantized_relu6(b: QdqBuilder, x: Any, inplace: bool = False) -> QTensor | Expr:
    """Returns min(max(x, 0), 6) under the input's parameters."""
    return _clip(b, x, 0.0, 6.0)


@register_converter("aten::hardtanh", "aten::hardtanh_")
def hardtanh(b: QdqBuilder, x: Any, min_val: float = -1.0, max_val: float = 1.0) -> QTensor | Expr:
    """Returns min(max(x, min_val), max_val) under the input's parameters."""
    return _clip(b, x, min_val, max_val)


@register_converter("aten::clamp", "aten::clamp_")
def clamp(b: QdqBuilder, x: Any, min: float | None = None, max: float | None = None) -> QTensor | Expr:  # noqa: A002
    """Returns x limited to [min, max] under the input's parameters."""
    return _clip(b, x, min, max)
