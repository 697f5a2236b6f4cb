"""Activations, on quantized and on float tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant, constant_array, shape_of
from quantvm.frontend.formulas import emitted, options_of
from quantvm.frontend.registry import register_converter
from quantvm.numerics.activations import ACTIVATIONS, Activation, QuantizedKernel

from .float_elementwise import float_operands


def _register(activation: Activation) -> None:
    """Registers the converter of an activation's aten operator."""

    @register_converter(*activation.aten)
    def convert(b: QdqBuilder, x: Any, *given: Any) -> QTensor | Expr:
        if activation.of_quantized is None:
            (x,) = float_operands(b, activation.name, x)
        y = _computed(b, activation, x, options_of(activation, given, {}))
        if activation.of_quantized == "input":
            return b.quantized_like(x, y)
        fixed = activation.of_quantized
        return b.quantized(y, fixed[x.q.dtype]) if isinstance(x, QTensor) and fixed is not None else y

    convert.__doc__ = f"Returns {activation.text}{_of_quantized(activation)}."


def _of_quantized(activation: Activation) -> str:
    """Returns the part of the documentation about quantized tensors."""
    if activation.of_quantized is None:
        return ""
    if activation.of_quantized == "input":
        return " with the input's parameters"
    q = activation.of_quantized["uint8"]
    return f"; a quantized result has scale 1/{1 / q.scale:g} and, for uint8, zero point {q.zero_point}"


def _register_quantized(activation: Activation, kernel: QuantizedKernel) -> None:
    """Registers the converter of the operator with the output's parameters as arguments."""
    name = f"quantized::{kernel.operator}"
    arguments = kernel.arguments or ("output_scale", "output_zero_point", *activation.options)

    @register_converter(name)
    def convert(b: QdqBuilder, x: Any, *given: Any) -> QTensor:
        b.expect_quantized(name, x)
        values = dict(zip(arguments, given, strict=False))
        named = {option: values[option] for option in activation.options if option in values}
        y = _computed(b, activation, x, options_of(activation, (), named))
        return b.quantized(y, b.params(values["output_scale"], values["output_zero_point"], x.q.dtype))

    convert.__doc__ = f"Returns quantize({activation.text})."


def _computed(b: QdqBuilder, activation: Activation, x: Any, options: tuple[float, ...]) -> Expr:
    real = b.real(b.without_gaps(x) if activation.needs_dense else x)
    return emitted(b, activation.formula, lambda: real, options, activation.name)


for _activation in ACTIVATIONS.values():
    if _activation.aten:
        _register(_activation)
    if _activation.kernel is not None and _activation.kernel.operator:
        _register_quantized(_activation, _activation.kernel)


@register_converter("quantized::prelu")
def quantized_prelu(b: QdqBuilder, x: Any, weight: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(x > 0 ? x : w * x), with one w or one per channel, in PyTorch's integer arithmetic."""
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
    """Returns x > 0 ? x : w * x of a float tensor, with one w or one per channel."""
    (x,) = float_operands(b, "prelu", x)
    slopes = constant(np.broadcast_to(constant_array(weight), (shape_of(x)[1],)), "float32")
    return b.emit(relax.op.nn.prelu(x, slopes, axis=1), "prelu")


@register_converter("aten::relu", "aten::relu_")
def relu(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns max(x, 0) with the input's parameters."""
    return relu_of(b, x)


def relu_of(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Emits max(x, 0) with the input's parameters."""
    return b.quantized_like(x, b.emit(relax.op.nn.relu(b.real(x)), "relu"))


def _clip(b: QdqBuilder, x: Any, low: float | None, high: float | None) -> QTensor | Expr:
    limits = (-3.4e38 if low is None else float(low), 3.4e38 if high is None else float(high))
    return b.quantized_like(x, b.emit(relax.op.clip(b.real(x), *limits), "clip"))


@register_converter("aten::relu6", "aten::relu6_")
def relu6(b: QdqBuilder, x: Any) -> QTensor | Expr:
    """Returns min(max(x, 0), 6) with the input's parameters."""
    return _clip(b, x, 0.0, 6.0)


@register_converter("quantized::relu6")
def quantized_relu6(b: QdqBuilder, x: Any, inplace: bool = False) -> QTensor | Expr:
    """Returns min(max(x, 0), 6) with the input's parameters."""
    return _clip(b, x, 0.0, 6.0)


@register_converter("aten::hardtanh", "aten::hardtanh_")
def hardtanh(b: QdqBuilder, x: Any, min_val: float = -1.0, max_val: float = 1.0) -> QTensor | Expr:
    """Returns min(max(x, min_val), max_val) with the input's parameters."""
    return _clip(b, x, min_val, max_val)


@register_converter("aten::clamp", "aten::clamp_")
def clamp(b: QdqBuilder, x: Any, min: float | None = None, max: float | None = None) -> QTensor | Expr:  # noqa: A002
    """Returns x limited to [min, max] with the input's parameters."""
    return _clip(b, x, min, max)
