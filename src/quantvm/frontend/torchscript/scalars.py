"""Sizes, numbers, and TorchScript's own lists and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tvm.sym.analyzer import Analyzer

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import QdqBuilder, shape_of
from quantvm.frontend.registry import register_converter


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, or a size that depends on the batch."""
    return isinstance(value, (int, float)) or str(getattr(value, "ty", "")) in ("int64", "int32")


def simplified(value: Any) -> Any:
    """Returns a size that depends on the batch in its simplest form; a number if it does not."""
    if isinstance(value, (int, float)):
        return value
    simple = Analyzer().simplify(value)
    return int(simple) if hasattr(simple, "value") else simple


@register_converter("aten::size")
def size(b: QdqBuilder, x: Any, dim: int | None = None) -> Any:
    """Returns one size, or all; a dynamic one as a symbolic expression."""
    shape = list(x.shape) if isinstance(x, torch.Tensor) else shape_of(x)
    return shape if dim is None else shape[dim]


@register_converter("aten::dim")
def dim(b: QdqBuilder, x: Any) -> int:
    """Returns the number of dimensions."""
    return x.ndim if isinstance(x, torch.Tensor) else len(shape_of(x))


@register_converter("aten::len")
def length(b: QdqBuilder, items: Any) -> int:
    """Returns the number of items of a list, or the first size of a tensor."""
    return len(items) if isinstance(items, (list, tuple)) else shape_of(items)[0]


@register_converter("aten::__getitem__")
def get_item(b: QdqBuilder, items: Sequence[Any], index: int) -> Any:
    """Returns an item of a list."""
    return items[index]


@register_converter("aten::__is__")
def is_none(b: QdqBuilder, value: Any, other: Any) -> bool:
    """Returns whether an optional argument is missing, that is, whether both are None."""
    return (value is None) == (other is None)


@register_converter("aten::__isnot__")
def is_not_none(b: QdqBuilder, value: Any, other: Any) -> bool:
    """Returns whether an optional argument is given."""
    return (value is None) != (other is None)


@register_converter("prim::NumToTensor")
def tensor_of_number(b: QdqBuilder, value: Any) -> Any:
    """Returns the number as a tensor; a size that depends on the batch stays an expression."""
    return torch.tensor(value) if isinstance(value, (int, float)) else value


@register_converter("aten::Int", "aten::Float", "aten::IntImplicit", "aten::ScalarImplicit")
def number(b: QdqBuilder, value: Any) -> Any:
    """Returns the number in a tensor without dimensions; the expression of a dynamic size is returned unchanged."""
    return value.item() if isinstance(value, torch.Tensor) else value


@register_converter("aten::Bool")
def boolean(b: QdqBuilder, value: Any) -> bool:
    """Returns whether a known number is not zero."""
    return bool(value)


@register_converter("aten::floor_divide", "aten::floordiv")
def floor_divide(b: QdqBuilder, x: Any, y: Any) -> Any:
    """Returns x // y on sizes."""
    return simplified(x // y)


@register_converter("aten::remainder")
def remainder(b: QdqBuilder, x: Any, y: Any) -> Any:
    """Returns x % y on sizes."""
    return simplified(x % y)


@register_converter("prim::ListConstruct")
def list_construct(b: QdqBuilder, *items: Any) -> list[Any]:
    """Returns the items."""
    return list(items)


@register_converter("prim::TupleConstruct")
def tuple_construct(b: QdqBuilder, *items: Any) -> tuple[Any, ...]:
    """Returns the items."""
    return items


@register_converter("prim::DictConstruct")
def dict_construct(b: QdqBuilder, *items: Any) -> dict[Any, Any]:
    """Returns the dict of alternating keys and values."""
    return dict(zip(items[::2], items[1::2], strict=True))


@register_converter("aten::__contains__")
def contains(b: QdqBuilder, items: Any, item: Any) -> bool:
    """Returns whether a dict has a key, or a list an item."""
    return item in items


@register_converter("aten::keys")
def keys(b: QdqBuilder, items: dict[Any, Any]) -> list[Any]:
    """Returns the keys of a dict."""
    return list(items)


@register_converter("aten::values")
def values(b: QdqBuilder, items: dict[Any, Any]) -> list[Any]:
    """Returns the values of a dict."""
    return list(items.values())


@register_converter("aten::items")
def items(b: QdqBuilder, items: dict[Any, Any]) -> list[Any]:
    """Returns the pairs of a dict."""
    return list(items.items())


@register_converter("prim::ListUnpack", "prim::TupleUnpack")
def list_unpack(b: QdqBuilder, items: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the items as several results."""
    return tuple(items)


@register_converter("prim::unchecked_cast")
def unchecked_cast(b: QdqBuilder, value: Any) -> Any:
    """Returns the value: the cast only concerns TorchScript's types."""
    return value


@register_converter("prim::RaiseException")
def raise_exception(b: QdqBuilder, message: str, *rest: Any) -> Any:
    """Ends the import: a check of the scripted model failed for the example's shapes.

    Raises:
        ModelImportError: always.
    """
    raise ModelImportError(f"the model itself refuses such inputs: {message}")


@register_converter("aten::new_zeros")
def new_zeros(b: QdqBuilder, x: Any, size: Sequence[Any], dtype: int | None = None, *rest: Any) -> Any:
    """Returns a tensor of zeros; its sizes must not depend on the batch."""
    return _filled(b, size, 0.0, dtype)


@register_converter("aten::new_ones")
def new_ones(b: QdqBuilder, x: Any, size: Sequence[Any], dtype: int | None = None, *rest: Any) -> Any:
    """Returns a tensor of ones; its sizes must not depend on the batch."""
    return _filled(b, size, 1.0, dtype)


@register_converter("aten::new_full")
def new_full(b: QdqBuilder, x: Any, size: Sequence[Any], value: float, dtype: int | None = None, *rest: Any) -> Any:
    """Returns a tensor filled with one number; its sizes must not depend on the batch."""
    return _filled(b, size, value, dtype)


def _filled(b: QdqBuilder, size: Sequence[Any], value: float, dtype: int | None) -> torch.Tensor:
    if not all(isinstance(d, int) for d in size):
        raise ModelImportError(f"the tensor made at {b.where} has a size that depends on the batch")
    if dtype not in (None, 6):
        raise ModelImportError(f"the tensor made at {b.where} has dtype number {dtype}, expected float32")
    return torch.full(tuple(size), value, dtype=torch.float32)
