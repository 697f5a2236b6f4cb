"""Tensors that exported programs create from numbers and sizes, possibly dynamic, and changes of dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tvm import ir, relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.frontend.torchscript.scalars import simplified

from .registry import register_exported
from .tensor_types import as_dtype, is_tensor, name_of, promoted, tensor_of, torch_dtype
from .values import ExportedBuilder

_OF_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float32}


def _filled(b: ExportedBuilder, shape: Sequence[Any], value: Any, dtype: torch.dtype | None) -> Expr:
    """Returns a tensor filled with one number; in the number's own dtype if none is given."""
    value = tensor_of(b, value)
    if is_tensor(value):
        fill = as_dtype(b, value, dtype or torch_dtype(value))
    else:
        fill = constant(value, name_of(dtype or _OF_NUMBERS[type(value)]))
    return b.emit(relax.op.full(relax.ShapeExpr(list(shape)), fill, str(fill.ty.dtype)), "full")


def _register_full(name: str, value: int) -> None:
    @register_exported(f"aten::{name}.default")
    def of_shape(b: ExportedBuilder, size: Sequence[Any], *, dtype: Any = None, **options: Any) -> Expr:
        return _filled(b, size, value, dtype or torch.float32)

    @register_exported(f"aten::{name}_like.default")
    def like(b: ExportedBuilder, x: Any, *, dtype: Any = None, **options: Any) -> Expr:
        x = b.relax_of(x)
        return _filled(b, shape_of(x), value, dtype or torch_dtype(x))

    @register_exported(f"aten::new_{name}.default")
    def new(b: ExportedBuilder, x: Any, size: Sequence[Any], *, dtype: Any = None, **options: Any) -> Expr:
        return _filled(b, size, value, dtype or torch_dtype(b.relax_of(x)))

    for function in (of_shape, like, new):
        function.__doc__ = f"Returns a tensor of {name}."


for _name, _value in (("zeros", 0), ("ones", 1)):
    _register_full(_name, _value)


@register_exported("aten::full.default")
def full(b: ExportedBuilder, size: Sequence[Any], value: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns a tensor filled with one number."""
    return _filled(b, size, value, dtype)


@register_exported("aten::full_like.default")
def full_like(b: ExportedBuilder, x: Any, value: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns a tensor of x's shape filled with one number."""
    x = b.relax_of(x)
    return _filled(b, shape_of(x), value, dtype or torch_dtype(x))


@register_exported("aten::new_full.default")
def new_full(b: ExportedBuilder, x: Any, size: Sequence[Any], value: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns a tensor of x's dtype filled with one number."""
    return _filled(b, size, value, dtype or torch_dtype(b.relax_of(x)))


@register_exported("aten::fill.Scalar", "aten::fill_.Scalar", "aten::fill.Tensor", "aten::fill_.Tensor")
def fill(b: ExportedBuilder, x: Any, value: Any) -> Expr:
    """Returns a tensor of x's shape and dtype filled with one number."""
    x = b.relax_of(x)
    return _filled(b, shape_of(x), value, torch_dtype(x))


@register_exported("aten::zero.default", "aten::zero_.default")
def zero(b: ExportedBuilder, x: Any) -> Expr:
    """Returns zeros of x's shape and dtype."""
    return fill(b, x, 0)


@register_exported("aten::empty.memory_format", "aten::empty_permuted.default")
def empty(b: ExportedBuilder, size: Sequence[Any], *rest: Any, dtype: Any = None, **options: Any) -> Expr:
    """Returns zeros; PyTorch leaves the contents undefined."""
    return _filled(b, size, 0, dtype or torch.float32)


@register_exported("aten::empty_like.default", "aten::new_empty.default")
def empty_like(b: ExportedBuilder, x: Any, size: Any = None, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns zeros; PyTorch leaves the contents undefined."""
    x = b.relax_of(x)
    return _filled(b, shape_of(x) if size is None else size, 0, dtype or torch_dtype(x))


@register_exported("aten::scalar_tensor.default")
def scalar_tensor(b: ExportedBuilder, value: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns a number, or a dynamic size, as a tensor without dimensions."""
    dtype = dtype or torch.float32
    value = tensor_of(b, value)
    return as_dtype(b, value, dtype) if is_tensor(value) else constant(value, name_of(dtype))


def _arange(b: ExportedBuilder, start: Any, end: Any, step: Any, dtype: Any) -> Expr:
    """Returns start + i*step. Fractions with a dynamic end are refused, because the size is unknown."""
    numbers = [start, end, step]
    if not all(isinstance(n, int) or ir.is_prim_expr(n) for n in numbers) or not isinstance(step, int):
        raise UnsupportedOpError("has a fractional step up to a dynamic end; use batch='static' (--batch static)")
    distance, stride = (end - start, step) if step > 0 else (start - end, -step)
    ones = _filled(b, [simplified((distance + (stride - 1)) // stride)], 1, torch.int64)
    y = b.emit(relax.op.cumsum(ones, 0, "int64"), "count")  # Relax cannot compile arange with a dynamic size
    y = b.emit(relax.op.multiply(y, constant(step, "int64")), "steps") if step != 1 else y
    (first,) = promoted(b, start - step, dtype=torch.int64)
    return as_dtype(b, b.emit(relax.op.add(y, first), "arange"), dtype or torch.int64)


@register_exported("aten::arange.default")
def arange(b: ExportedBuilder, end: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns 0, 1, ... below a dynamic end."""
    return _arange(b, 0, end, 1, dtype)


@register_exported("aten::arange.start")
def arange_start(b: ExportedBuilder, start: Any, end: Any, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns the integers from `start` to below `end`; one of the two is dynamic."""
    return _arange(b, start, end, 1, dtype)


@register_exported("aten::arange.start_step")
def arange_step(b: ExportedBuilder, start: Any, end: Any, step: Any = 1, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns every `step`-th integer from `start` to below `end`; one of the two is dynamic."""
    return _arange(b, start, end, step, dtype)


@register_exported("aten::eye.default", "aten::eye.m")
def eye(b: ExportedBuilder, rows: Any, columns: Any = None, *, dtype: Any = None, **options: Any) -> Expr:
    """Returns a matrix of dynamic size with ones on the diagonal and zeros elsewhere."""
    sizes = (rows, rows if columns is None else columns)
    row, column = (_arange(b, 0, size, 1, None) for size in sizes)
    equal = relax.op.equal(b.emit(relax.op.expand_dims(row, [1]), "row"), column)
    return as_dtype(b, b.emit(equal, "diagonal"), dtype or torch.float32)


@register_exported("aten::_to_copy.default", "aten::to.dtype_layout")
def to_copy(b: ExportedBuilder, x: Any, *, dtype: Any = None, **options: Any) -> Any:
    """Returns x converted to another dtype, if one is given."""
    from .torchao_operators import to_dtype

    return x if dtype is None else to_dtype(b, x, dtype)


@register_exported("aten::type_as.default")
def type_as(b: ExportedBuilder, x: Any, other: Any) -> Expr:
    """Returns x converted to another tensor's dtype."""
    return as_dtype(b, b.relax_of(x), torch_dtype(b.relax_of(other)))
