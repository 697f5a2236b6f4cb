"""Arithmetic, comparisons and choices between tensors and numbers in exported programs, with PyTorch's promotion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant, shape_of

from .registry import register_exported
from .tensor_types import as_dtype, common_dtype, float_dtype, name_of, promoted, tensor_of, torch_dtype
from .unary import log1p
from .values import ExportedBuilder

Operation = Callable[[Expr, Expr], Expr]


def _differ(x: Expr, y: Expr) -> Expr:
    """Returns whether x and y differ; Relax's own operator returns False for NaN."""
    return relax.op.logical_not(relax.op.equal(x, y))


_COMPARISONS: dict[str, Operation] = {
    "eq": relax.op.equal, "ne": _differ, "lt": relax.op.less, "le": relax.op.less_equal,
    "gt": relax.op.greater, "ge": relax.op.greater_equal,
}  # fmt: skip
_LOGICAL: dict[str, Operation] = {
    "and": relax.op.logical_and, "or": relax.op.logical_or, "xor": relax.op.logical_xor,
}  # fmt: skip
_BITWISE: dict[str, Operation] = {
    "and": relax.op.bitwise_and, "or": relax.op.bitwise_or, "xor": relax.op.bitwise_xor,
}  # fmt: skip


def _register_comparison(name: str, op: Operation) -> None:
    @register_exported(f"aten::{name}.Tensor", f"aten::{name}.Scalar")
    def convert(b: ExportedBuilder, x: Any, y: Any) -> Expr:
        first, second = promoted(b, x, y)
        if torch_dtype(first) == torch.bool:  # Relax cannot order booleans
            first, second = as_dtype(b, first, torch.uint8), as_dtype(b, second, torch.uint8)
        return b.emit(op(first, second), name)

    convert.__doc__ = f"Returns whether x {name} y, after promotion."


def _register_logical(name: str, op: Operation) -> None:
    @register_exported(f"aten::logical_{name}.default")
    def convert(b: ExportedBuilder, x: Any, y: Any) -> Expr:
        return b.emit(op(*promoted(b, *_booleans(b, x, y))), f"logical_{name}")

    convert.__doc__ = f"Returns x {name} y, where nonzero numbers count as true."


def _booleans(b: ExportedBuilder, *operands: Any) -> list[Expr]:
    return [as_dtype(b, b.relax_of(v), torch.bool) for v in operands]


def _register_bitwise(name: str, op: Operation) -> None:
    names = [f"aten::{form}.{kind}" for form in (f"bitwise_{name}", f"bitwise_{name}_", f"__{name}__")
             for kind in ("Tensor", "Scalar")]  # fmt: skip

    @register_exported(*names)
    def convert(b: ExportedBuilder, x: Any, y: Any) -> Expr:
        first, second = promoted(b, x, y)
        return b.emit((_LOGICAL[name] if torch_dtype(first) == torch.bool else op)(first, second), name)

    convert.__doc__ = f"Returns the bitwise {name} of x and y, after promotion."


for _name, _op in _COMPARISONS.items():
    _register_comparison(_name, _op)
for _name, _op in _LOGICAL.items():
    _register_logical(_name, _op)
for _name, _op in _BITWISE.items():
    _register_bitwise(_name, _op)


# ------------------------------------------------------------------ arithmetic


@register_exported("aten::rsub.Tensor", "aten::rsub.Scalar")
def rsub(b: ExportedBuilder, x: Any, y: Any, alpha: Any = 1) -> Expr:
    """Returns y - alpha*x."""
    first, second = promoted(b, x, y)
    if alpha != 1:
        first = b.emit(relax.op.multiply(first, constant(alpha, name_of(torch_dtype(first)))), "alpha")
    return b.emit(relax.op.subtract(second, first), "rsub")


def extreme(b: ExportedBuilder, x: Any, y: Any, which: str) -> Expr:
    """Returns the larger or the smaller of two tensors; `which` is maximum or minimum."""
    first, second = promoted(b, x, y)
    if torch_dtype(first) == torch.bool:
        op = relax.op.logical_or if which == "maximum" else relax.op.logical_and
        return b.emit(op(first, second), which)
    return b.emit(getattr(relax.op, which)(first, second), which)


@register_exported("aten::maximum.default", "aten::max.other")
def maximum(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns the larger of x and y."""
    return extreme(b, x, y, "maximum")


@register_exported("aten::minimum.default", "aten::min.other")
def minimum(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns the smaller of x and y."""
    return extreme(b, x, y, "minimum")


@register_exported("aten::atan2.default")
def atan2(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns the angle of the point with abscissa y and ordinate x."""
    dtype = float_dtype([tensor_of(b, x), tensor_of(b, y)])
    return b.emit(relax.op.atan2(*promoted(b, x, y, dtype=dtype)), "atan2")


@register_exported("aten::logaddexp.default")
def logaddexp(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns log(exp(x) + exp(y)), as m + log(1 + exp(-|x - y|)) with m = max(x, y)."""
    first, second = promoted(b, x, y)
    high = b.emit(relax.op.maximum(first, second), "high")
    distance = b.emit(relax.op.abs(b.emit(relax.op.subtract(first, second), "difference")), "distance")
    rest = log1p(b, b.emit(relax.op.exp(b.emit(relax.op.negative(distance), "negative")), "exp"))
    both = b.emit(relax.op.add(high, rest), "logaddexp")
    same = b.emit(relax.op.equal(first, second), "same")  # includes equal infinities, whose difference is NaN
    doubled = b.emit(relax.op.add(first, constant(0.6931471805599453, name_of(torch_dtype(first)))), "doubled")
    return b.emit(relax.op.where(same, doubled, both), "logaddexp")


def _has_other_sign(b: ExportedBuilder, rest: Expr, divisor: Expr) -> Expr:
    """Returns whether a remainder is nonzero and has another sign than the divisor."""
    zero = constant(0, name_of(torch_dtype(rest)))
    is_rest = b.emit(relax.op.not_equal(rest, zero), "is_rest")
    signs = [b.emit(relax.op.less(v, zero), "is_negative") for v in (rest, divisor)]
    return b.emit(relax.op.logical_and(is_rest, b.emit(relax.op.logical_xor(*signs), "differ")), "other_sign")


@register_exported("aten::remainder.Tensor", "aten::remainder.Scalar", "aten::remainder.Scalar_Tensor")
def remainder(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns x - y*floor(x/y), exactly: the remainder with the divisor's sign."""
    first, second = promoted(b, x, y)
    if not torch_dtype(first).is_floating_point:
        return b.emit(relax.op.floor_mod(first, second), "remainder")
    rest = b.emit(relax.op.mod(first, second), "rest")
    moved = b.emit(relax.op.add(rest, second), "moved")
    return b.emit(relax.op.where(_has_other_sign(b, rest, second), moved, rest), "remainder")


@register_exported("aten::fmod.Tensor", "aten::fmod.Scalar")
def fmod(b: ExportedBuilder, x: Any, y: Any) -> Expr:
    """Returns the remainder of x / y with the dividend's sign."""
    return b.emit(relax.op.mod(*promoted(b, x, y)), "fmod")


@register_exported("aten::floor_divide.default", "aten::floor_divide.Scalar")
def floor_divide(b: ExportedBuilder, x: Any, y: Any) -> Any:
    """Returns x / y rounded down; for floats, from (x - fmod(x, y)) / y as in PyTorch."""
    first, second = promoted(b, x, y)
    dtype = torch_dtype(first)
    if not dtype.is_floating_point:
        return b.emit(relax.op.floor_divide(first, second), "floor_divide")
    number = name_of(dtype)
    rest = b.emit(relax.op.mod(first, second), "rest")
    quotient = b.emit(relax.op.divide(b.emit(relax.op.subtract(first, rest), "whole"), second), "quotient")
    less = b.emit(relax.op.subtract(quotient, constant(1.0, number)), "less")
    quotient = b.emit(relax.op.where(_has_other_sign(b, rest, second), less, quotient), "quotient")
    floor = b.emit(relax.op.floor(quotient), "floor")
    gap = b.emit(relax.op.subtract(quotient, floor), "gap")
    is_above = b.emit(relax.op.greater(gap, constant(0.5, number)), "is_above")
    floor = b.emit(relax.op.where(is_above, b.emit(relax.op.add(floor, constant(1.0, number)), "next"), floor), "floor")
    plain = b.emit(relax.op.divide(first, second), "plain")
    zero = b.emit(relax.op.multiply(plain, constant(0.0, number)), "signed_zero")
    is_zero = b.emit(relax.op.equal(quotient, constant(0.0, number)), "is_zero")
    floor = b.emit(relax.op.where(is_zero, zero, floor), "floor")
    by_zero = b.emit(relax.op.equal(second, constant(0.0, number)), "by_zero")
    return b.emit(relax.op.where(by_zero, plain, floor), "floor_divide")


@register_exported("aten::div.Tensor_mode", "aten::div.Scalar_mode")
def div_mode(b: ExportedBuilder, x: Any, y: Any, *, rounding_mode: str | None) -> Expr:
    """Returns x / y, rounded down or towards 0 according to `rounding_mode`."""
    if rounding_mode == "floor":
        return floor_divide(b, x, y)
    operands = [tensor_of(b, x), tensor_of(b, y)]
    if rounding_mode is None:
        return b.emit(relax.op.divide(*promoted(b, *operands, dtype=float_dtype(operands))), "div")
    quotient = b.emit(relax.op.divide(*promoted(b, *operands)), "div")
    is_float = torch_dtype(quotient).is_floating_point
    return b.emit(relax.op.trunc(quotient), "trunc") if is_float else quotient


# ------------------------------------------------------------------ powers


@register_exported("aten::pow.Tensor_Scalar")
def pow_scalar(b: ExportedBuilder, x: Any, exponent: Any) -> Expr:
    """Returns x ** exponent, by products and roots where PyTorch uses them; integers give integers."""
    x = b.relax_of(x)
    dtype = common_dtype([x, exponent])
    if not dtype.is_floating_point:
        return _whole_power(b, as_dtype(b, x, dtype), int(exponent))
    x = as_dtype(b, x, dtype)
    if exponent in (2, 3):
        return _product(b, x, int(exponent))
    if exponent == 0.5:
        return b.emit(relax.op.sqrt(x), "sqrt")
    if exponent in (-0.5, -1, -2):
        below = b.emit(relax.op.sqrt(x), "sqrt") if exponent == -0.5 else _product(b, x, -int(exponent))
        return b.emit(relax.op.divide(constant(1.0, name_of(dtype)), below), "reciprocal")
    return b.emit(relax.op.power(x, constant(float(exponent), name_of(dtype))), "pow")


def _product(b: ExportedBuilder, x: Expr, count: int) -> Expr:
    y = x
    for _ in range(count - 1):
        y = b.emit(relax.op.multiply(y, x), "pow")
    return y


def _whole_power(b: ExportedBuilder, x: Expr, exponent: int) -> Expr:
    if exponent < 0:
        raise ModelImportError(f"raises integers to the power of {exponent}, which PyTorch refuses")
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else b.emit(relax.op.multiply(result, square), "pow")
        exponent >>= 1
        square = b.emit(relax.op.multiply(square, square), "square") if exponent else square
    return b.emit(relax.op.ones_like(x), "ones") if result is None else result


@register_exported("aten::pow.Tensor_Tensor", "aten::pow.Scalar")
def pow_tensor(b: ExportedBuilder, x: Any, exponent: Any) -> Expr:
    """Returns x ** exponent; for integers by repeated squaring, and 0 for negative exponents unless x is 1 or -1."""
    base, exponents = promoted(b, x, exponent)
    dtype = torch_dtype(base)
    if dtype.is_floating_point:
        return b.emit(relax.op.power(base, exponents), "pow")
    bits = torch.iinfo(dtype).bits
    shape = _both(b, base, exponents)
    number = name_of(dtype)
    result, square = b.emit(relax.op.ones_like(shape), "ones"), base
    for at in range(bits - (1 if dtype.is_signed else 0)):
        digit = b.emit(relax.op.bitwise_and(exponents, constant(1 << at, number)), "digit")
        taken = b.emit(relax.op.multiply(result, square), "product")
        is_set = b.emit(relax.op.not_equal(digit, constant(0, number)), "is_set")
        result = b.emit(relax.op.where(is_set, taken, result), "pow")
        square = b.emit(relax.op.multiply(square, square), "square")
    if not dtype.is_signed:
        return result
    one, zero = constant(1, number), constant(0, number)
    sign = b.emit(relax.op.where(_is_odd(b, exponents), base, b.emit(relax.op.multiply(base, base), "square")), "sign")
    is_unit = b.emit(relax.op.equal(b.emit(relax.op.abs(base), "abs"), one), "is_unit")
    inverse = b.emit(relax.op.where(is_unit, sign, zero), "inverse")
    is_negative = b.emit(relax.op.less(exponents, zero), "is_negative")
    return b.emit(relax.op.where(is_negative, inverse, result), "pow")


def _is_odd(b: ExportedBuilder, x: Expr) -> Expr:
    number = name_of(torch_dtype(x))
    digit = b.emit(relax.op.bitwise_and(x, constant(1, number)), "digit")
    return b.emit(relax.op.not_equal(digit, constant(0, number)), "is_odd")


def _both(b: ExportedBuilder, x: Expr, y: Expr) -> Expr:
    """Returns a tensor of the shape to which x and y broadcast."""
    return b.emit(relax.op.add(x, y), "both")


# ------------------------------------------------------------------ limits and choices


def _limited(b: ExportedBuilder, x: Any, low: Any, high: Any) -> Expr:
    limits = [v for v in (low, high) if v is not None]
    values = [tensor_of(b, v) for v in (x, *limits)]
    y, *bounds = promoted(b, *values, dtype=common_dtype(values))
    names = [name for name, v in (("maximum", low), ("minimum", high)) if v is not None]
    for name, bound in zip(names, bounds, strict=True):
        y = b.emit(getattr(relax.op, name)(y, bound), name)
    return y


@register_exported("aten::clamp.Tensor")
def clamp_tensor(b: ExportedBuilder, x: Any, low: Any = None, high: Any = None) -> Expr:
    """Returns min(max(x, low), high) with tensors as limits."""
    return _limited(b, x, low, high)


def _clipped(b: ExportedBuilder, x: Any, low: Any, high: Any) -> Expr:
    y = b.relax_of(x)
    if not torch_dtype(y).is_floating_point:
        return _limited(b, y, low, high)
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return b.emit(relax.op.clip(y, *limits), "clip")


@register_exported("aten::clamp.default", "aten::clamp_.default")
def clamp(b: ExportedBuilder, x: Any, low: Any = None, high: Any = None) -> Expr:
    """Returns min(max(x, low), high)."""
    return _clipped(b, x, low, high)


@register_exported("aten::hardtanh.default", "aten::hardtanh_.default")
def hardtanh(b: ExportedBuilder, x: Any, low: float = -1.0, high: float = 1.0) -> Expr:
    """Returns min(max(x, low), high)."""
    return _clipped(b, x, low, high)


@register_exported("aten::clamp_min.default", "aten::clamp_min_.default")
def clamp_min(b: ExportedBuilder, x: Any, low: Any) -> Expr:
    """Returns max(x, low)."""
    return _clipped(b, x, low, None)


@register_exported("aten::clamp_max.default", "aten::clamp_max_.default")
def clamp_max(b: ExportedBuilder, x: Any, high: Any) -> Expr:
    """Returns min(x, high)."""
    return _clipped(b, x, None, high)


@register_exported("aten::where.self", "aten::where.ScalarOther", "aten::where.ScalarSelf", "aten::where.Scalar")
def where(b: ExportedBuilder, condition: Any, x: Any, y: Any) -> Expr:
    """Returns x where the condition is true, else y, after promotion."""
    return b.emit(relax.op.where(*_booleans(b, condition), *promoted(b, x, y)), "where")


@register_exported("aten::masked_fill.Scalar", "aten::masked_fill_.Scalar", "aten::masked_fill.Tensor",
                   "aten::masked_fill_.Tensor")  # fmt: skip
def masked_fill(b: ExportedBuilder, x: Any, mask: Any, value: Any) -> Expr:
    """Returns x with `value`, converted to x's dtype, where the mask is true."""
    x = b.relax_of(x)
    (value,) = promoted(b, value, dtype=torch_dtype(x))
    return b.emit(relax.op.where(*_booleans(b, mask), value, x), "masked_fill")


@register_exported("aten::isin.Tensor_Tensor")
def isin(b: ExportedBuilder, x: Any, tests: Any, *, assume_unique: bool = False, invert: bool = False) -> Expr:
    """Returns whether each element is among the tests, or with `invert` is not."""
    first, second = promoted(b, x, tests)
    flat = b.emit(relax.op.reshape(second, relax.ShapeExpr([-1])) if shape_of(second) else second, "flat")
    equal = b.emit(relax.op.equal(b.emit(relax.op.expand_dims(first, [-1]), "each"), flat), "equal")
    count = b.emit(relax.op.sum(b.emit(relax.op.astype(equal, "int32"), "found"), [-1]), "count")
    compare = relax.op.equal if invert else relax.op.not_equal
    return b.emit(compare(count, constant(0, "int32")), "isin")


@register_exported("aten::bucketize.Tensor")
def bucketize(b: ExportedBuilder, x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Expr:
    """Returns how many of the sorted boundaries are below each element, or with `right`, not above it; all for NaN."""
    first, second = promoted(b, x, boundaries)
    each = b.emit(relax.op.expand_dims(first, [-1]), "each")
    reached = (relax.op.greater if right else relax.op.greater_equal)(second, each)
    passed = b.emit(relax.op.logical_not(b.emit(reached, "reached")), "passed")
    dtype = "int32" if out_int32 else "int64"
    return b.emit(relax.op.sum(b.emit(relax.op.astype(passed, dtype), "counted"), [-1]), "bucketize")
