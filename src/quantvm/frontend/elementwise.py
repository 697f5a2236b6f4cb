"""Quantize, dequantize, arithmetic and activations, on quantized and on float tensors."""

from __future__ import annotations

from typing import Any

from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.numerics import QuantParams

from .builder import Expr, QdqBuilder, QTensor, constant
from .registry import register_converter

_DTYPES = {12: "int8", 13: "uint8"}  # torch.qint8, torch.quint8 as TorchScript numbers them


@register_converter("aten::quantize_per_tensor")
def quantize_per_tensor(b: QdqBuilder, x: Expr, scale: float, zero_point: int, dtype: int) -> QTensor:
    """Returns the float tensor quantized to quint8 or qint8."""
    if dtype not in _DTYPES:
        raise ModelImportError(f"quantize_per_tensor at {b.where} to dtype number {dtype}; expected quint8 or qint8")
    return b.quantized(x, b.params(scale, zero_point, _DTYPES[dtype]))


@register_converter("aten::dequantize")
def dequantize(b: QdqBuilder, x: Any) -> Expr:
    """Returns the float tensor."""
    return b.real(x)


def _binary(
    b: QdqBuilder, op: Any, name: str, operands: tuple[Any, Any], out: tuple[float, int], relu: bool
) -> QTensor:
    b.expect_quantized(name, *operands)
    y = b.emit(op(b.real(operands[0]), b.real(operands[1])), name.removeprefix("quantized::"))
    if relu:
        y = b.emit(relax.op.nn.relu(y), "relu")
    return b.quantized(y, b.params(*out))


@register_converter("quantized::add")
def quantized_add(b: QdqBuilder, qa: Any, qb: Any, scale: float, zero_point: int) -> QTensor:
    """Returns quantize(dequantize(a) + dequantize(b))."""
    return _binary(b, relax.op.add, "quantized::add", (qa, qb), (scale, zero_point), relu=False)


@register_converter("quantized::add_relu")
def quantized_add_relu(b: QdqBuilder, qa: Any, qb: Any, scale: float, zero_point: int) -> QTensor:
    """Returns quantize(relu(dequantize(a) + dequantize(b)))."""
    return _binary(b, relax.op.add, "quantized::add", (qa, qb), (scale, zero_point), relu=True)


@register_converter("quantized::mul")
def quantized_mul(b: QdqBuilder, qa: Any, qb: Any, scale: float, zero_point: int) -> QTensor:
    """Returns quantize(dequantize(a) * dequantize(b)), with broadcasting."""
    return _binary(b, relax.op.multiply, "quantized::mul", (qa, qb), (scale, zero_point), relu=False)


@register_converter("quantized::mul_relu")
def quantized_mul_relu(b: QdqBuilder, qa: Any, qb: Any, scale: float, zero_point: int) -> QTensor:
    """Returns quantize(relu(dequantize(a) * dequantize(b))), with broadcasting."""
    return _binary(b, relax.op.multiply, "quantized::mul", (qa, qb), (scale, zero_point), relu=True)


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
    return b.quantized(y, b.params(output_scale, output_zero_point))


_UNIT_INTERVAL = QuantParams(1.0 / 256.0, 0)  # what ATen fixes for outputs in [0, 1)


@register_converter("aten::hardsigmoid", "aten::hardsigmoid_")
def hardsigmoid(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns min(max(x+3, 0), 6) / 6; a quantized result has scale 1/256 and zero point 0."""
    y = b.emit(relax.op.divide(_gate(b, b.real(x)), constant(6.0, "float32")), "hardsigmoid")
    return b.quantized(y, _UNIT_INTERVAL) if isinstance(x, QTensor) else y


@register_converter("aten::sigmoid", "aten::sigmoid_")
def sigmoid(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns 1 / (1 + exp(-x)); a quantized result has scale 1/256 and zero point 0."""
    y = b.emit(relax.op.sigmoid(b.real(x)), "sigmoid")
    return b.quantized(y, _UNIT_INTERVAL) if isinstance(x, QTensor) else y


@register_converter("quantized::leaky_relu")
def quantized_leaky_relu(
    b: QdqBuilder, x: Any, negative_slope: float, inplace: bool, output_scale: float, output_zero_point: int
) -> QTensor:
    """Returns quantize(x > 0 ? x : negative_slope * x)."""
    b.expect_quantized("quantized::leaky_relu", x)
    y = b.emit(relax.op.nn.leakyrelu(b.real(x), negative_slope), "leaky_relu")
    return b.quantized(y, b.params(output_scale, output_zero_point))


@register_converter("aten::relu", "aten::relu_")
def relu(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns max(x, 0) under the input's parameters."""
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
