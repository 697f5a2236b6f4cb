"""Functions of one float tensor in exported programs, as accurate near zero as PyTorch's own, and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.frontend.formulas import emitted, options_of
from quantvm.numerics.activations import ACTIVATIONS, Activation

from .registry import register_exported
from .tensor_types import as_dtype, as_float, name_of, torch_dtype
from .values import Dequantized, ExportedBuilder

Function = Callable[[Expr], Expr]

_OF_REALS: dict[str, Function] = {
    name: getattr(relax.op, name)
    for name in ("acos", "acosh", "asin", "asinh", "atan", "cos", "cosh", "erf", "exp", "log", "rsqrt", "sin", "sinh",
                 "sqrt", "tan", "isfinite", "isinf", "isnan")
}  # fmt: skip
"""Functions that TVM computes as PyTorch does; integers are converted to float32 first."""

_OF_NUMBERS: dict[str, Function] = {
    name: getattr(relax.op, "negative" if name == "neg" else name)
    for name in ("abs", "ceil", "floor", "neg", "round", "sign", "square", "trunc")
}
"""Functions that keep the dtype; rounding leaves integers unchanged."""
_ROUNDING = ("ceil", "floor", "round", "trunc")


def _register_of_reals(name: str, function: Function) -> None:
    @register_exported(f"aten::{name}.default")
    def convert(b: ExportedBuilder, x: Any) -> Expr:
        return b.emit(function(as_float(b, x)), name)

    convert.__doc__ = f"Returns {name}(x); integers are converted to float32."


def _register_of_numbers(name: str, function: Function) -> None:
    @register_exported(f"aten::{name}.default")
    def convert(b: ExportedBuilder, x: Any) -> Expr:
        x = b.relax_of(x)
        if name in _ROUNDING and not torch_dtype(x).is_floating_point:
            return x
        return b.emit(function(x), name)

    convert.__doc__ = f"Returns {name}(x)."


for _name, _function in _OF_REALS.items():
    _register_of_reals(_name, _function)
for _name, _function in _OF_NUMBERS.items():
    _register_of_numbers(_name, _function)


# ------------------------------------------------------------------ accurate near zero


def _in_double(b: ExportedBuilder, x: Expr, function: Function, hint: str) -> Expr:
    """Returns a function with f(x) ~ x near zero, computed in double precision and rounded; x itself for |x| < 1e-8.

    In float32, as TVM computes them, exp(x) - 1 and similar functions lose the digits of a small x.
    """
    dtype = name_of(torch_dtype(x))
    wide = b.emit(relax.op.astype(x, "float64"), "double")
    y = b.emit(relax.op.astype(b.emit(function(wide), hint), dtype), hint)
    is_small = b.emit(relax.op.less(b.emit(relax.op.abs(x), "abs"), constant(1e-8, dtype)), "is_small")
    return b.emit(relax.op.where(is_small, x, y), hint)


def _one() -> Expr:
    return constant(1.0, "float64")


@register_exported("aten::expm1.default")
def expm1(b: ExportedBuilder, x: Any) -> Expr:
    """Returns exp(x) - 1, computed in double precision and rounded."""
    return _in_double(b, as_float(b, x), lambda v: relax.op.subtract(relax.op.exp(v), _one()), "expm1")


@register_exported("aten::log1p.default")
def log1p(b: ExportedBuilder, x: Any) -> Expr:
    """Returns log(1 + x), computed in double precision and rounded."""
    return _in_double(b, as_float(b, x), lambda v: relax.op.log(relax.op.add(v, _one())), "log1p")


@register_exported("aten::atanh.default")
def atanh(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the inverse hyperbolic tangent, computed in double precision and rounded."""
    return _in_double(b, as_float(b, x), relax.op.atanh, "atanh")


@register_exported("aten::log2.default")
def log2(b: ExportedBuilder, x: Any) -> Expr:
    """Returns log(x) / log(2)."""
    return _divided(b, b.emit(relax.op.log(as_float(b, x)), "log"), 0.6931471805599453, "log2")


@register_exported("aten::log10.default")
def log10(b: ExportedBuilder, x: Any) -> Expr:
    """Returns log(x) / log(10)."""
    return _divided(b, b.emit(relax.op.log(as_float(b, x)), "log"), 2.302585092994046, "log10")


def _divided(b: ExportedBuilder, x: Expr, divisor: float, hint: str) -> Expr:
    return b.emit(relax.op.divide(x, constant(divisor, name_of(torch_dtype(x)))), hint)


@register_exported("aten::reciprocal.default")
def reciprocal(b: ExportedBuilder, x: Any) -> Expr:
    """Returns 1 / x."""
    x = as_float(b, x)
    return b.emit(relax.op.divide(constant(1.0, name_of(torch_dtype(x))), x), "reciprocal")


@register_exported("aten::round.decimals")
def round_decimals(b: ExportedBuilder, x: Any, *, decimals: int) -> Expr:
    """Returns round(x * 10^decimals) / 10^decimals; with negative decimals, it divides first and then multiplies."""
    x = as_float(b, x)
    power = constant(10.0 ** abs(decimals), name_of(torch_dtype(x)))
    first, then = (relax.op.multiply, relax.op.divide) if decimals > 0 else (relax.op.divide, relax.op.multiply)
    if decimals == 0:
        return b.emit(relax.op.round(x), "round")
    rounded = b.emit(relax.op.round(b.emit(first(x, power), "scaled")), "round")
    return b.emit(then(rounded, power), "round")


@register_exported("aten::logical_not.default")
def logical_not(b: ExportedBuilder, x: Any) -> Expr:
    """Returns whether x is 0."""
    return b.emit(relax.op.logical_not(as_dtype(b, b.relax_of(x), torch.bool)), "logical_not")


@register_exported("aten::bitwise_not.default")
def bitwise_not(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the complement of integers, or whether booleans are false."""
    x = b.relax_of(x)
    op = relax.op.logical_not if torch_dtype(x) == torch.bool else relax.op.bitwise_not
    return b.emit(op(x), "bitwise_not")


# ------------------------------------------------------------------ activations


def _register_activation(activation: Activation) -> None:
    @register_exported(*(f"{name}.default" for name in activation.aten))
    def convert(b: ExportedBuilder, x: Any, *given: Any, **named: Any) -> Expr:
        if activation.accurate_near_zero and not isinstance(x, Dequantized):
            return _in_double(b, as_float(b, x), getattr(relax.op, activation.name), activation.name)
        return _activation(b, activation, x, options_of(activation, given, named))

    in_double = ", for float tensors computed in double precision and rounded" if activation.accurate_near_zero else ""
    convert.__doc__ = f"Returns {activation.text}{in_double}."


def _activation(b: ExportedBuilder, activation: Activation, x: Any, options: tuple[float, ...]) -> Expr:
    formula = activation.exported or activation.formula
    return emitted(b, formula, lambda: as_float(b, x), options, activation.name)


for _row in ACTIVATIONS.values():
    if _row.aten:
        _register_activation(_row)


@register_exported("aten::gelu.default")
def gelu(b: ExportedBuilder, x: Any, *, approximate: str = "none") -> Expr:
    """Returns x * Phi(x), with the error function or the approximation by tanh."""
    op = relax.op.nn.gelu_tanh if approximate == "tanh" else relax.op.nn.gelu
    return b.emit(op(b.relax_of(x)), "gelu")


@register_exported("aten::rrelu.default")
def rrelu(
    b: ExportedBuilder,
    x: Any,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Expr:
    """Returns x > 0 ? x : x * (lower + upper) / 2, as in inference."""
    if training:
        raise ModelImportError("draws random slopes: it is in training mode; call model.eval() before torch.export")
    return _activation(b, ACTIVATIONS["leaky_relu"], x, ((lower + upper) / 2,))


@register_exported("aten::elu.default", "aten::elu_.default")
def elu(b: ExportedBuilder, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Expr:
    """Returns x > 0 ? scale * x : scale * alpha * (exp(input_scale * x) - 1)."""
    x = b.relax_of(x)
    dtype = name_of(torch_dtype(x))

    def times(y: Expr, factor: float) -> Expr:
        return y if factor == 1 else b.emit(relax.op.multiply(y, constant(float(factor), dtype)), "mul")

    below = times(expm1(b, times(x, input_scale)), float(alpha) * float(scale))
    is_above = b.emit(relax.op.greater(x, constant(0.0, dtype)), "is_above")
    return b.emit(relax.op.where(is_above, times(x, scale), below), "elu")


@register_exported("aten::celu.default", "aten::celu_.default")
def celu(b: ExportedBuilder, x: Any, alpha: float = 1.0) -> Expr:
    """Returns x > 0 ? x : alpha * (exp(x / alpha) - 1)."""
    return elu(b, x, alpha, 1.0, 1.0 / float(alpha))


@register_exported("aten::selu.default", "aten::selu_.default")
def selu(b: ExportedBuilder, x: Any) -> Expr:
    """Returns elu(x) with the constants of self-normalizing networks."""
    return elu(b, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@register_exported("aten::softplus.default")
def softplus(b: ExportedBuilder, x: Any, beta: float = 1, threshold: float = 20) -> Expr:
    """Returns beta*x > threshold ? x : log(1 + exp(beta*x)) / beta."""
    x = b.relax_of(x)
    dtype = name_of(torch_dtype(x))
    scaled = b.emit(relax.op.multiply(x, constant(float(beta), dtype)), "scaled") if beta != 1 else x
    curve = log1p(b, b.emit(relax.op.exp(scaled), "exp"))
    curve = _divided(b, curve, float(beta), "curve") if beta != 1 else curve
    is_linear = b.emit(relax.op.greater(scaled, constant(float(threshold), dtype)), "is_linear")
    return b.emit(relax.op.where(is_linear, x, curve), "softplus")


@register_exported("aten::softshrink.default")
def softshrink(b: ExportedBuilder, x: Any, lambd: float = 0.5) -> Expr:
    """Returns x - lambd above lambd, x + lambd below -lambd, else 0 (times x, so that NaN stays)."""
    x = b.relax_of(x)
    dtype = name_of(torch_dtype(x))
    shift, zero = constant(float(lambd), dtype), b.emit(relax.op.multiply(x, constant(0.0, dtype)), "zero")
    above, below = relax.op.greater(x, shift), relax.op.less(x, constant(-float(lambd), dtype))
    low = relax.op.where(b.emit(below, "below"), b.emit(relax.op.add(x, shift), "raised"), zero)
    return b.emit(
        relax.op.where(b.emit(above, "above"), b.emit(relax.op.subtract(x, shift), "lowered"), b.emit(low, "low"))
    )


@register_exported("aten::prelu.default")
def prelu(b: ExportedBuilder, x: Any, weight: Any) -> Expr:
    """Returns x > 0 ? x : w * x, with one w, or one per channel (dimension 1)."""
    x, weight = b.relax_of(x), b.relax_of(weight)
    rank, (count,) = len(shape_of(x)), shape_of(weight)
    shape = [1] * rank
    if rank > 1:
        shape[1] = count
    elif count != 1:
        raise ModelImportError(f"has {count} slopes for a tensor of {rank} dimensions, expected 1")
    slopes = b.emit(relax.op.reshape(weight, relax.ShapeExpr(shape)), "slopes")
    below = b.emit(relax.op.multiply(x, slopes), "below")
    is_above = b.emit(relax.op.greater(x, constant(0.0, name_of(torch_dtype(x)))), "is_above")
    return b.emit(relax.op.where(is_above, x, below), "prelu")
