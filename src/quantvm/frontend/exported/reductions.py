"""Sums, means, products, norms, extremes and tests over dimensions of tensors in exported programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.sizes import product

from .registry import register_exported
from .tensor_types import as_dtype, name_of, tensor_of, torch_dtype
from .values import Dequantized, ExportedBuilder


def reduced(b: ExportedBuilder, x: Expr, which: str, dim: Any = None, keepdim: bool = False) -> Expr:
    """Returns a Relax reduction over one or several dimensions, or over all if none is given."""
    shape = shape_of(x)
    if not shape:
        x = b.emit(relax.op.reshape(x, relax.ShapeExpr([1])), "vector")
        return b.emit(getattr(relax.op, which)(x, [0], False), which)
    return b.emit(getattr(relax.op, which)(x, axes_of(dim, len(shape)), keepdim), which)


def axes_of(dim: Any, rank: int) -> list[int]:
    """Returns non-negative dimensions; all of them if none is given."""
    dims = [] if dim is None else [dim] if isinstance(dim, int) else [int(d) for d in dim]
    return [d % max(rank, 1) for d in dims] or list(range(rank))


def _summable(b: ExportedBuilder, x: Any, dtype: torch.dtype | None) -> Expr:
    x = b.relax_of(x)
    old = torch_dtype(x)
    return as_dtype(b, x, dtype or (old if old.is_floating_point else torch.int64))


@register_exported("aten::sum.default")
def sum_all(b: ExportedBuilder, x: Any, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns the sum of all elements; int64 for integers and booleans."""
    return reduced(b, _summable(b, x, dtype), "sum")


@register_exported("aten::sum.dim_IntList")
def sum_dim(
    b: ExportedBuilder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Expr:
    """Returns the sums over the dimensions; int64 for integers and booleans."""
    return reduced(b, _summable(b, x, dtype), "sum", dim, keepdim)


@register_exported("aten::prod.default")
def prod_all(b: ExportedBuilder, x: Any, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns the product of all elements; int64 for integers and booleans."""
    return reduced(b, _summable(b, x, dtype), "prod")


@register_exported("aten::prod.dim_int")
def prod_dim(b: ExportedBuilder, x: Any, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns the products along a dimension; int64 for integers and booleans."""
    return reduced(b, _summable(b, x, dtype), "prod", dim, keepdim)


@register_exported("aten::mean.default")
def mean_all(b: ExportedBuilder, x: Any, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns the mean of all elements."""
    return reduced(b, _summable(b, x, dtype), "mean")


@register_exported("aten::mean.dim")
def mean_dim(
    b: ExportedBuilder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Expr:
    """Returns the means over the dimensions."""
    return reduced(b, _summable(b, x, dtype), "mean", dim, keepdim)


# ------------------------------------------------------------------ variances and norms


def _variance(b: ExportedBuilder, x: Any, dim: Any, correction: float | None, keepdim: bool) -> Expr:
    """Returns the mean squared distance from the mean, times n / (n - correction)."""
    x = b.relax_of(x)
    y = reduced(b, x, "variance", dim, keepdim)
    correction = 1 if correction is None else correction
    shape = shape_of(x)
    count = product([shape[axis] for axis in axes_of(dim, len(shape))])
    if correction == 0:
        return y
    number = name_of(torch_dtype(x))
    if isinstance(count, int):
        factor = count / (count - correction) if count > correction else math.inf
        return b.emit(relax.op.multiply(y, constant(factor, number)), "var")
    size = as_dtype(b, tensor_of(b, count), torch_dtype(x))
    rest = b.emit(relax.op.subtract(size, constant(float(correction), number)), "rest")
    rest = b.emit(relax.op.maximum(rest, constant(0.0, number)), "rest")
    return b.emit(relax.op.multiply(y, b.emit(relax.op.divide(size, rest), "factor")), "var")


@register_exported("aten::var.correction")
def var(b: ExportedBuilder, x: Any, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Expr:
    """Returns the sum of squared distances from the mean over the dimensions, divided by n - correction."""
    return _variance(b, x, dim, correction, keepdim)


@register_exported("aten::std.correction")
def std(b: ExportedBuilder, x: Any, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Expr:
    """Returns the square root of the variance over the dimensions, which divides by n - correction."""
    return b.emit(relax.op.sqrt(_variance(b, x, dim, correction, keepdim)), "std")


@register_exported("aten::var_mean.correction")
def var_mean(
    b: ExportedBuilder, x: Any, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> list[Expr]:
    """Returns [the variance, the mean] over the dimensions."""
    return [_variance(b, x, dim, correction, keepdim), reduced(b, b.relax_of(x), "mean", dim, keepdim)]


@register_exported("aten::linalg_vector_norm.default")
def vector_norm(
    b: ExportedBuilder, x: Any, order: float = 2, dim: Any = None, keepdim: bool = False, *,
    dtype: torch.dtype | None = None,
) -> Expr:  # fmt: skip
    """Returns (sum |x|^order)^(1/order) over the dimensions; order 0 counts nonzeros, +-inf are max and min of |x|."""
    x = b.relax_of(x)
    x = as_dtype(b, x, dtype or torch_dtype(x))
    number = name_of(torch_dtype(x))
    if order == 0:
        counted = b.emit(
            relax.op.astype(b.emit(relax.op.not_equal(x, constant(0, number)), "other"), number), "counted"
        )
        return reduced(b, counted, "sum", dim, keepdim)
    if order == 2:
        squares = b.emit(relax.op.multiply(x, x), "square")
        return b.emit(relax.op.sqrt(reduced(b, squares, "sum", dim, keepdim)), "norm")
    size = b.emit(relax.op.abs(x), "abs")
    if math.isinf(order):
        return _extremes(b, size, "max" if order > 0 else "min", dim, keepdim)
    if order == 1:
        return reduced(b, size, "sum", dim, keepdim)
    powers = b.emit(relax.op.power(size, constant(float(order), number)), "power")
    total = reduced(b, powers, "sum", dim, keepdim)
    return b.emit(relax.op.power(total, constant(1.0 / order, number)), "norm")


# ------------------------------------------------------------------ tests


def _any_or_all(b: ExportedBuilder, x: Any, dim: Any, keepdim: bool, which: str) -> Expr:
    x = b.relax_of(x)
    old, truth = torch_dtype(x), as_dtype(b, x, torch.bool)
    if isinstance(dim, (list, tuple)) and not dim:  # over no dimension, unlike a sum
        return as_dtype(b, truth, torch.uint8) if old == torch.uint8 else truth
    if which == "all":
        truth = b.emit(relax.op.logical_not(truth), "misses")
    count = reduced(b, b.emit(relax.op.astype(truth, "int32"), "counted"), "sum", dim, keepdim)
    compare = relax.op.equal if which == "all" else relax.op.not_equal
    y = b.emit(compare(count, constant(0, "int32")), which)
    return as_dtype(b, y, torch.uint8) if old == torch.uint8 else y


@register_exported("aten::any.default", "aten::any.dim", "aten::any.dims")
def any_(b: ExportedBuilder, x: Any, dim: Any = None, keepdim: bool = False) -> Expr:
    """Returns whether any element over the dimensions is not 0."""
    return _any_or_all(b, x, dim, keepdim, "any")


@register_exported("aten::all.default", "aten::all.dim", "aten::all.dims")
def all_(b: ExportedBuilder, x: Any, dim: Any = None, keepdim: bool = False) -> Expr:
    """Returns whether no element over the dimensions is 0."""
    return _any_or_all(b, x, dim, keepdim, "all")


# ------------------------------------------------------------------ extremes


def _may_be_nan(value: Any, x: Expr) -> bool:
    return not isinstance(value, Dequantized) and torch_dtype(x).is_floating_point


def _nans(b: ExportedBuilder, x: Expr) -> Expr:
    return b.emit(relax.op.astype(b.emit(relax.op.isnan(x), "isnan"), "int8"), "nans")


def _extremes(b: ExportedBuilder, value: Any, which: str, dim: Any, keepdim: bool) -> Expr:
    """Returns the extremes over dimensions; NaN if any of the elements is."""
    x = b.relax_of(value)
    dtype = torch_dtype(x)
    if dtype == torch.bool:
        return as_dtype(b, reduced(b, as_dtype(b, x, torch.uint8), which, dim, keepdim), torch.bool)
    y = reduced(b, x, which, dim, keepdim)
    if not _may_be_nan(value, x):
        return y
    # TVM starts from the largest finite number, so it ignores infinities; and no comparison with NaN is true
    end = constant(-math.inf if which == "max" else math.inf, name_of(dtype))
    inside = (relax.op.greater if which == "max" else relax.op.less)(x, end)
    inside = b.emit(relax.op.astype(b.emit(inside, "inside"), "int8"), "inside")
    nans = _nans(b, x)
    kinds = b.emit(relax.op.add(b.emit(relax.op.add(nans, nans), "twice"), inside), "kinds")  # NaN 2, end 0
    kind = reduced(b, kinds, "max", dim, keepdim)
    is_end = b.emit(relax.op.equal(kind, constant(0, "int8")), "is_end")
    y = b.emit(relax.op.where(is_end, end, y), which)
    has_nan = b.emit(relax.op.equal(kind, constant(2, "int8")), "has_nan")
    return b.emit(relax.op.where(has_nan, constant(math.nan, name_of(dtype)), y), which)


def _index_of_extreme(b: ExportedBuilder, value: Any, which: str, dim: int | None, keepdim: bool) -> Expr:
    """Returns the int64 index of the first extreme, or first NaN, along a dimension or among all elements."""
    x = b.relax_of(value)
    if not shape_of(x):
        return constant(0, "int64")
    axis = None if dim is None else dim % len(shape_of(x))
    # TVM returns -1 if all elements are the dtype's least (or largest) finite number or beyond it
    if not torch_dtype(x).is_floating_point:
        x = as_dtype(b, x, torch.int64)
    elif _may_be_nan(value, x):
        limits = (-3.4e38, math.inf) if which == "max" else (-math.inf, 3.4e38)
        clipped = b.emit(relax.op.clip(x, *limits), "finite")
    is_checked = _may_be_nan(value, x)
    y = b.emit(getattr(relax.op, f"arg{which}")(clipped if is_checked else x, axis, keepdim), f"arg{which}")
    if not is_checked:
        return y
    nans = b.emit(relax.op.astype(_nans(b, x), "int32"), "nans")
    has_nan = as_dtype(b, b.emit(relax.op.max(nans, axis, keepdim), "max"), torch.bool)
    return b.emit(relax.op.where(has_nan, b.emit(relax.op.argmax(nans, axis, keepdim), "first"), y), f"arg{which}")


@register_exported("aten::max.default")
def max_all(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the largest element; NaN if any element is NaN."""
    return _extremes(b, x, "max", None, False)


@register_exported("aten::min.default")
def min_all(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the smallest element; NaN if any element is NaN."""
    return _extremes(b, x, "min", None, False)


@register_exported("aten::amax.default")
def amax(b: ExportedBuilder, x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Expr:
    """Returns the maxima over the dimensions, all of them if none is given."""
    return _extremes(b, x, "max", dim, keepdim)


@register_exported("aten::amin.default")
def amin(b: ExportedBuilder, x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Expr:
    """Returns the minima over the dimensions, all of them if none is given."""
    return _extremes(b, x, "min", dim, keepdim)


@register_exported("aten::max.dim")
def max_dim(b: ExportedBuilder, x: Any, dim: int, keepdim: bool = False) -> list[Expr]:
    """Returns [maxima along `dim`, int64 index of the first of each]."""
    return [_extremes(b, x, "max", dim, keepdim), _index_of_extreme(b, x, "max", dim, keepdim)]


@register_exported("aten::min.dim")
def min_dim(b: ExportedBuilder, x: Any, dim: int, keepdim: bool = False) -> list[Expr]:
    """Returns [minima along `dim`, int64 index of the first of each]."""
    return [_extremes(b, x, "min", dim, keepdim), _index_of_extreme(b, x, "min", dim, keepdim)]


@register_exported("aten::argmax.default")
def argmax(b: ExportedBuilder, x: Any, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Returns the int64 index of the first maximum along a dimension, or among all elements."""
    return _index_of_extreme(b, x, "max", dim, keepdim)


@register_exported("aten::argmin.default")
def argmin(b: ExportedBuilder, x: Any, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Returns the int64 index of the first minimum along a dimension, or among all elements."""
    return _index_of_extreme(b, x, "min", dim, keepdim)


@register_exported("aten::median.default")
def median(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the lower median of all elements.

    Raises:
        UnsupportedOpError: their number is dynamic.
    """
    value = x
    x = b.relax_of(x)
    count = product(shape_of(x))
    if not isinstance(count, int):
        raise UnsupportedOpError("takes the median of a dynamic number of elements; use batch='static'")
    flat = b.emit(relax.op.reshape(x, relax.ShapeExpr([count])), "flat")
    middle = (count - 1) // 2
    ordered = b.emit(relax.op.sort(flat, 0, False), "sort")
    y = b.emit(relax.op.squeeze(relax.op.strided_slice(ordered, [0], [middle], [middle + 1]), [0]), "median")
    if not _may_be_nan(value, x):
        return y
    has_nan = as_dtype(b, reduced(b, _nans(b, flat), "max"), torch.bool)
    return b.emit(relax.op.where(has_nan, constant(math.nan, name_of(torch_dtype(x))), y), "median")
