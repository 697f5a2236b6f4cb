"""Reading and writing at indices in exported programs: tables, gathers, scatters, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.frontend.torchscript.shapes import axis_of
from quantvm.sizes import product

from .moving import reshaped, taken
from .registry import register_exported
from .tensor_types import as_dtype, promoted, tensor_of, torch_dtype
from .values import ExportedBuilder


def _nonnegative_index(b: ExportedBuilder, index: Any, size: Any) -> Expr:
    """Returns int64 indices from 0; negative ones count from the end and are converted."""
    if isinstance(index, torch.Tensor) and isinstance(size, int):
        table = index.to(torch.int64).numpy()
        if table.size and not (-size <= table.min() and table.max() < size):
            raise UnsupportedOpError(f"reads at {table.min()}..{table.max()} of {size} elements")
        return constant(np.where(table < 0, table + size, table), "int64")
    index = as_dtype(b, b.relax_of(index), torch.int64)
    is_negative = b.emit(relax.op.less(index, constant(0, "int64")), "is_negative")
    (total,) = promoted(b, size, dtype=torch.int64)
    return b.emit(relax.op.where(is_negative, b.emit(relax.op.add(index, total), "from_end"), index), "index")


def _without_masks(b: ExportedBuilder, indices: Sequence[Any]) -> list[Any]:
    """Returns the indices, with each constant mask replaced by the indices of its true elements.

    Raises:
        UnsupportedOpError: a mask is computed at run time, so that the number of selected elements is unknown.
    """
    found: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            found += index.nonzero(as_tuple=True)
        elif index is not None and torch_dtype(b.relax_of(index)) in (torch.bool, torch.uint8):
            raise UnsupportedOpError("selects elements by a mask that is computed at run time; use torch.where instead")
        else:
            found.append(index)
    return found


class _Flat:
    """A tensor whose indexed dimensions are merged into one.

    Attributes:
        x: the tensor, permuted so that the merged dimension is `axis`.
        axis: the merged dimension.
        index: int64 indices along it, of the shape to which the index tensors broadcast.
        order: the permutation that brought the indexed dimensions together.
    """

    def __init__(self, b: ExportedBuilder, x: Expr, indices: Sequence[Any]) -> None:
        indices = _without_masks(b, indices)
        shape = shape_of(x)
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        are_neighbours = axes == list(range(axes[0], axes[0] + len(axes)))
        rest = [axis for axis in range(len(shape)) if axis not in axes]
        self.axis = axes[0] if are_neighbours else 0
        self.order = [*rest[: self.axis], *axes, *rest[self.axis :]]
        self.sizes = [shape[axis] for axis in self.order]
        self.count = len(axes)
        if self.order != sorted(self.order):
            x = b.emit(relax.op.permute_dims(x, self.order), "indexed_first")
        index = None
        for axis in axes:
            places = _nonnegative_index(b, indices[axis], shape[axis])
            if index is None:
                index = places
                continue
            (size,) = promoted(b, shape[axis], dtype=torch.int64)
            index = b.emit(relax.op.add(b.emit(relax.op.multiply(index, size), "row"), places), "index")
        self.index = index
        if len(axes) > 1:
            merged = product([shape[axis] for axis in axes])
            x = reshaped(b, x, [*self.sizes[: self.axis], merged, *self.sizes[self.axis + len(axes) :]])
        self.x = x


@register_exported("aten::index.Tensor")
def index_tensor(b: ExportedBuilder, x: Any, indices: Sequence[Any]) -> Expr:
    """Returns x[i, :, j, ...] with integer tensors or constant masks, broadcast against each other.

    The indexed dimensions stay in place if they are adjacent, else they come first, as in PyTorch.
    """
    x = b.relax_of(x)
    if all(index is None for index in indices):
        return x
    flat = _Flat(b, x, indices)
    return taken(b, flat.x, flat.index, flat.axis, "index")


@register_exported("aten::index_select.default")
def index_select(b: ExportedBuilder, x: Any, dim: int, index: Any) -> Expr:
    """Returns the slices along `dim` that a vector of indices lists."""
    x = b.relax_of(x)
    shape = shape_of(x)
    if not shape:
        return x
    axis = axis_of(dim, len(shape))
    places = _nonnegative_index(b, index, shape[axis])
    places = places if shape_of(places) else reshaped(b, places, [1])
    return taken(b, x, places, axis, "index_select")


@register_exported("aten::take.default")
def take(b: ExportedBuilder, x: Any, index: Any) -> Expr:
    """Returns elements of x as one vector."""
    x = b.relax_of(x)
    count = product(shape_of(x))
    flat = reshaped(b, x, [count])
    return taken(b, flat, _nonnegative_index(b, index, count), 0, "take")


@register_exported("aten::embedding.default")
def embedding(
    b: ExportedBuilder, weight: Any, index: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Expr:  # fmt: skip
    """Returns the rows of the weight at the indices."""
    index = b.emit(relax.op.astype(b.relax_of(index), "int32"), "index")
    weight = b.relax_of(weight)
    shape = shape_of(index)
    if len(shape) == 1:
        return taken(b, weight, index, 0, "embedding")
    rows = taken(b, weight, reshaped(b, index, [product(shape)]), 0, "embedding")
    return reshaped(b, rows, [*shape, shape_of(weight)[-1]])


@register_exported("aten::gather.default")
def gather(b: ExportedBuilder, x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Expr:
    """Returns x at the indices along `dim`, and at each index's own position along the other dimensions."""
    x, index = b.relax_of(x), as_dtype(b, b.relax_of(index), torch.int64)
    if not shape_of(x):
        return x
    axis = axis_of(dim, len(shape_of(x)))
    return b.emit(relax.op.gather_elements(_cropped(b, x, shape_of(index), axis), index, axis), "gather")


def _cropped(b: ExportedBuilder, x: Expr, shape: Sequence[Any], kept: int | None = None) -> Expr:
    """Returns x cropped to the first elements along each dimension but `kept`, to the given shape."""
    for axis, (size, old) in enumerate(zip(shape, shape_of(x), strict=True)):
        if axis == kept or (isinstance(size, int) and isinstance(old, int) and size == old):
            continue
        if isinstance(size, int) and isinstance(old, int):
            x = b.emit(relax.op.strided_slice(x, [axis], [0], [size]), "part")
        elif isinstance(size, int) or isinstance(old, int):
            raise UnsupportedOpError(f"takes a part of the dynamic dimension {axis}; use batch='static'")
    return x


def _scattered(b: ExportedBuilder, x: Expr, dim: int, index: Any, src: Any, reduction: str) -> Expr:
    index = as_dtype(b, b.relax_of(index), torch.int64)
    src = as_dtype(b, tensor_of(b, src), torch_dtype(x))
    axis = axis_of(dim, len(shape_of(x)))
    src = _cropped(b, src, shape_of(index))
    return b.emit(relax.op.scatter_elements(x, index, src, axis, reduction), "scatter")


@register_exported("aten::scatter.src")
def scatter(b: ExportedBuilder, x: Any, dim: int, index: Any, src: Any) -> Expr:
    """Returns x with elements of `src` written at the indices along a dimension."""
    return _scattered(b, b.relax_of(x), dim, index, src, "update")


@register_exported("aten::scatter_add.default")
def scatter_add(b: ExportedBuilder, x: Any, dim: int, index: Any, src: Any) -> Expr:
    """Returns x with elements of `src` added at the indices along a dimension."""
    return _scattered(b, b.relax_of(x), dim, index, src, "add")


@register_exported("aten::scatter.value")
def scatter_value(b: ExportedBuilder, x: Any, dim: int, index: Any, value: Any) -> Expr:
    """Returns x with a number written at the indices along a dimension."""
    x, index = b.relax_of(x), b.relax_of(index)
    (fill,) = promoted(b, value, dtype=torch_dtype(x))
    src = b.emit(relax.op.broadcast_to(fill, relax.ShapeExpr(shape_of(index))), "value")
    return _scattered(b, x, dim, index, src, "update")


@register_exported("aten::index_put.default", "aten::index_put_.default")
def index_put(b: ExportedBuilder, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Expr:
    """Returns x with values written, or added, at x[i, :, j, ...].

    A mask computed at run time may take one value.
    """
    x = b.relax_of(x)
    values = as_dtype(b, tensor_of(b, values), torch_dtype(x))
    if len(indices) == 1 and not isinstance(indices[0], torch.Tensor) and indices[0] is not None:
        mask = b.relax_of(indices[0])
        if torch_dtype(mask) == torch.bool and all(size == 1 for size in shape_of(values)):
            values = reshaped(b, values, []) if shape_of(values) else values
            new = b.emit(relax.op.add(x, values), "added") if accumulate else values
            mask = reshaped(b, mask, [*shape_of(mask), *[1] * (len(shape_of(x)) - len(shape_of(mask)))])
            return b.emit(relax.op.where(mask, new, x), "index_put")
    flat = _Flat(b, x, indices)
    axis, sizes = flat.axis, shape_of(flat.x)
    taken = [*sizes[:axis], *shape_of(flat.index), *sizes[axis + 1 :]]
    count = product(shape_of(flat.index))
    values = b.emit(relax.op.broadcast_to(values, relax.ShapeExpr(taken)), "values")
    source = reshaped(b, values, [*sizes[:axis], count, *sizes[axis + 1 :]])
    places = reshaped(b, flat.index, [count if at == axis else 1 for at in range(len(sizes))])
    places = b.emit(relax.op.broadcast_to(places, relax.ShapeExpr(shape_of(source))), "places")
    written = relax.op.scatter_elements(flat.x, places, source, axis, "add" if accumulate else "update")
    y = b.emit(written, "index_put")
    y = reshaped(b, y, flat.sizes) if flat.count > 1 else y
    back = list(np.argsort(flat.order))
    return b.emit(relax.op.permute_dims(y, [int(at) for at in back])) if back != sorted(back) else y
