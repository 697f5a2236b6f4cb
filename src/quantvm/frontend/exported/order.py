"""Operators of exported programs that sort or accumulate along a dimension: sort, topk, medians, running sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import Expr, shape_of

from .registry import register_exported
from .values import ExportedBuilder, Unreadable


@dataclass(frozen=True)
class Unordered(Unreadable):
    """Indices that PyTorch does not define for equal values: a program may return them, but must not read them.

    Attributes:
        op: the operator that made them.
        where: its layer.
        instead: advice: an operator with a defined order.
    """

    op: str
    where: str
    instead: str

    def expression(self, b: ExportedBuilder | None = None) -> Expr:
        """Raises UnsupportedOpError: something reads them."""
        raise UnsupportedOpError(
            f"reads the indices of {self.op} at {self.where or 'the graph'}: which of equal values comes first is not "
            f"defined by PyTorch, and quantized tensors have many equal values. {self.instead}"
        )


def _axis(x: Expr, dim: int) -> int:
    return dim % max(len(shape_of(x)), 1)


def _sorted(b: ExportedBuilder, x: Expr, dim: int, descending: bool) -> Expr:
    return b.emit(relax.op.sort(x, _axis(x, dim), descending), "sort")


def _order(b: ExportedBuilder, x: Expr, dim: int, descending: bool) -> Expr:
    return b.emit(relax.op.argsort(x, _axis(x, dim), descending, "int64"), "argsort")


@register_exported("aten::sort.default")
def sort(b: ExportedBuilder, x: Any, dim: int = -1, descending: bool = False) -> list[Any]:
    """Returns [sorted values, indices that must not be read]."""
    return [_sorted(b, b.relax_of(x), dim, descending), Unordered("sort", b.where, "Call sort with stable=True")]


@register_exported("aten::sort.stable")
def sort_stable(
    b: ExportedBuilder, x: Any, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> list[Any]:
    """Returns [sorted values, their int64 indices; equal values keep their order]."""
    x = b.relax_of(x)
    if not stable:
        return sort(b, x, dim, descending)
    return [_sorted(b, x, dim, descending), _order(b, x, dim, descending)]


@register_exported("aten::argsort.default")
def argsort(b: ExportedBuilder, x: Any, dim: int = -1, descending: bool = False) -> Unordered:
    """Returns indices that must not be read."""
    return Unordered("argsort", b.where, "Call argsort with stable=True")


@register_exported("aten::argsort.stable")
def argsort_stable(b: ExportedBuilder, x: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """Returns the int64 indices of sorted values; equal values keep their order."""
    return _order(b, b.relax_of(x), dim, descending) if stable else argsort(b, x, dim, descending)


@register_exported("aten::topk.default")
def topk(
    b: ExportedBuilder, x: Any, k: int, dim: int = -1, largest: bool = True,
    sorted: bool = True,  # noqa: A002 - PyTorch's name
) -> list[Any]:  # fmt: skip
    """Returns [the k largest values in descending order, or the k smallest in ascending order; unreadable indices].

    Raises:
        UnsupportedOpError: unsorted values, whose order PyTorch does not define.
    """
    if not sorted:
        raise UnsupportedOpError("returns values in no defined order; call topk with sorted=True")
    x = b.relax_of(x)
    axis = _axis(x, dim)
    values = b.emit(relax.op.strided_slice(_sorted(b, x, axis, largest), [axis], [0], [k]), "topk")
    return [values, Unordered("topk", b.where, "Call sort with stable=True and take the first k")]


@register_exported("aten::median.dim")
def median_dim(b: ExportedBuilder, x: Any, dim: int, keepdim: bool = False) -> list[Any]:
    """Returns [the lower median along `dim`, indices that must not be read].

    Raises:
        UnsupportedOpError: the dimension is dynamic.
    """
    x = b.relax_of(x)
    axis = _axis(x, dim)
    size = shape_of(x)[axis]
    if not isinstance(size, int):
        raise UnsupportedOpError("takes the median along a dynamic dimension; use batch='static'")
    middle = (size - 1) // 2
    value = b.emit(relax.op.strided_slice(_sorted(b, x, axis, False), [axis], [middle], [middle + 1]), "median")
    value = value if keepdim else b.emit(relax.op.squeeze(value, axis), "median")
    return [value, Unordered("median", b.where, "Use its values only, or sort with stable=True")]


def _running(b: ExportedBuilder, x: Any, dim: int, dtype: torch.dtype | None, which: str) -> Expr:
    """Accumulates as PyTorch's CPU kernel does: floats in double precision, in order, each result rounded."""
    x = b.relax_of(x)
    old = str(x.ty.dtype)
    name = str(dtype).removeprefix("torch.") if dtype is not None else "int64" if old[0] in "iub" else old
    if name != old:
        x = b.emit(relax.op.astype(x, name), "astype")
    if name != "float32":
        return b.emit(getattr(relax.op, which)(x, _axis(x, dim), name), which)
    wide = b.emit(relax.op.astype(x, "float64"), "double")
    sums = b.emit(getattr(relax.op, which)(wide, _axis(x, dim), "float64"), f"{which}_double")
    return b.emit(relax.op.astype(sums, "float32"), which)


@register_exported("aten::cumsum.default")
def cumsum(b: ExportedBuilder, x: Any, dim: int, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns running sums along `dim`; int64 for integers."""
    return _running(b, x, dim, dtype, "cumsum")


@register_exported("aten::cumprod.default")
def cumprod(b: ExportedBuilder, x: Any, dim: int, *, dtype: torch.dtype | None = None) -> Expr:
    """Returns running products along `dim`; int64 for integers."""
    return _running(b, x, dim, dtype, "cumprod")
