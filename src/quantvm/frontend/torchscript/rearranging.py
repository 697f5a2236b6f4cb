"""Data movement beyond views: concatenation, splits, shifts, indexing, resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant, constant_array, shape_of
from quantvm.frontend.registry import register_converter
from quantvm.qdq.expressions import is_constant

from .shapes import axis_of, in_default_order, slice_


@register_converter("aten::expand")
def expand(b: QdqBuilder, x: Any, size: Sequence[Any], implicit: bool = False) -> QTensor | Expr:
    """Returns x repeated along dimensions of size 1, and along new first ones; -1 keeps a size."""
    old = shape_of(x)
    new = len(size) - len(old)
    kept = [old[i - new] if isinstance(d, int) and d == -1 else d for i, d in enumerate(size)]
    return b.moved(x, lambda e: relax.op.broadcast_to(e, relax.ShapeExpr(kept)))


@register_converter("aten::roll")
def roll(b: QdqBuilder, x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> QTensor | Expr:
    """Returns x with its elements rotated along dimensions."""
    if len(dims) != len(shifts):
        raise ModelImportError(f"roll at {b.where} without dimensions is not supported")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(dim, len(shape_of(x)))
        length = shape_of(x)[axis]
        if not isinstance(length, int):
            raise ModelImportError(f"roll at {b.where} along the dynamic dimension {axis}")
        cut = -shift % length
        if cut:
            x = b.moved(x, lambda e, axis=axis, cut=cut, length=length: relax.op.concat([
                b.emit(relax.op.strided_slice(e, [axis], [cut], [length]), "rest"),
                b.emit(relax.op.strided_slice(e, [axis], [0], [cut]), "wrapped"),
            ], axis))  # fmt: skip
    return x


@register_converter("aten::stack")
def stack(b: QdqBuilder, tensors: Sequence[Any], dim: int = 0) -> Expr:
    """Returns float tensors joined along a new dimension."""
    if any(isinstance(t, QTensor) for t in tensors):
        raise ModelImportError(f"stack at {b.where} of quantized tensors is not supported")
    return b.emit(relax.op.stack(list(tensors), axis_of(dim, len(shape_of(tensors[0])) + 1)), "stack")


@register_converter("aten::split", "aten::split_with_sizes")
def split(b: QdqBuilder, x: Any, sizes: Any, dim: int = 0) -> list[Any]:
    """Returns slices along `dim`, of one size or of the given ones."""
    axis = axis_of(dim, len(shape_of(x)))
    length = shape_of(x)[axis]
    if not isinstance(length, int):
        raise ModelImportError(f"split at {b.where} cuts the dynamic dimension {axis}")
    if isinstance(sizes, int):
        sizes = [min(sizes, length - at) for at in range(0, length, sizes)]
    ends = np.cumsum(sizes).tolist()
    return [slice_(b, x, axis, end - n, end) for n, end in zip(sizes, ends, strict=True)]


@register_converter("aten::unbind")
def unbind(b: QdqBuilder, x: Any, dim: int = 0) -> list[Any]:
    """Returns the slices of size 1 along `dim`, without that dimension."""
    from .shapes import select

    length = shape_of(x)[dim]
    if not isinstance(length, int):
        raise ModelImportError(f"unbind at {b.where} cuts the dynamic dimension {dim}")
    return [select(b, x, dim, index) for index in range(length)]


@register_converter("aten::unflatten")
def unflatten(b: QdqBuilder, x: Any, dim: int, sizes: Sequence[Any]) -> QTensor | Expr:
    """Returns x with a dimension split into several; one size may be -1."""
    from .shapes import reshape

    shape = shape_of(x)
    axis = axis_of(dim, len(shape))
    return reshape(b, x, [*shape[:axis], *sizes, *shape[axis + 1 :]])


@register_converter("aten::index")
def index(b: QdqBuilder, x: Any, indices: Sequence[Any]) -> QTensor | Expr:
    """Returns x[:, ..., table] for one table of integers."""
    given = [(axis, table) for axis, table in enumerate(indices) if table is not None]
    if len(given) != 1 or not is_constant(given[0][1]) or str(given[0][1].ty.dtype) == "bool":
        raise ModelImportError(f"indexing at {b.where} is supported by one table of known integers only")
    axis, table = given[0]
    y = _taken(b, x, axis, constant_array(table))
    return in_default_order(b, y) if isinstance(y, QTensor) else y  # PyTorch's result is contiguous


@register_converter("aten::index_select")
def index_select(b: QdqBuilder, x: Any, dim: int, table: Expr) -> QTensor | Expr:
    """Returns the slices along `dim` that a table of known integers lists."""
    return index(b, x, [*[None] * axis_of(dim, len(shape_of(x))), table])


def _taken(b: QdqBuilder, x: Any, axis: int, table: np.ndarray) -> QTensor | Expr:
    shape = shape_of(x)
    length = shape[axis]
    if not isinstance(length, int):
        raise ModelImportError(f"indexing at {b.where} of the dynamic dimension {axis}")
    if table.size and not (-length <= table.min() and table.max() < length):
        raise ModelImportError(f"indexing at {b.where}: {table.min()}..{table.max()} lies outside of {length}")
    flat = constant(np.where(table < 0, table + length, table).reshape(-1), "int64")
    y = b.moved(x, lambda e: relax.op.take(e, flat, axis))
    if table.ndim == 1:
        return y
    dims = [*shape[:axis], *table.shape, *shape[axis + 1 :]]
    return b.moved(y, lambda e: relax.op.reshape(e, relax.ShapeExpr(dims)))


def _sources(size: int, length: int, factor: float | None) -> np.ndarray:
    """Returns min(floor(fl(i * r)), length - 1) with r = fl(length / size), or (float)(1 / factor) if given."""
    ratio = np.float32(length) / np.float32(size) if factor is None else np.float32(1.0 / factor)
    return np.minimum(np.floor(np.arange(size, dtype=np.float32) * ratio).astype(np.int64), length - 1)


def _sizes(b: QdqBuilder, x: Any, size: Sequence[int] | None, factors: Any) -> tuple[list[int], list[float | None]]:
    lengths = shape_of(x)[2:]
    if size is not None:
        return [int(s) for s in size], [None] * len(lengths)
    given = [factors] * len(lengths) if isinstance(factors, float) else list(factors or ())
    if len(given) != len(lengths):
        raise ModelImportError(f"interpolation at {b.where} has neither a size nor factors")
    return [int(np.floor(n * f)) for n, f in zip(lengths, given, strict=True)], given


@register_converter("aten::upsample_nearest2d")
def upsample_nearest2d(
    b: QdqBuilder, x: Any, size: Sequence[int] | None, factors_h: Any = None, factors_w: Any = None
) -> QTensor | Expr:
    """Returns each element's nearest source, with the input's parameters.

    Exactness: ATen's UpSampleNearest2d.cpp; for maps of one pixel PyTorch 2.13 scrambles channels, this does not.
    """
    factors = factors_h if isinstance(factors_h, (list, tuple)) or factors_h is None else [factors_h, factors_w]
    sizes, given = _sizes(b, x, size, factors)
    for axis, (length, factor) in enumerate(zip(sizes, given, strict=True), start=2):
        x = _taken(b, x, axis, _sources(length, shape_of(x)[axis], factor))
    return x


def _ratio(length: int, size: int, factor: float | None, align_corners: bool) -> float:
    """Returns ATen's `area_pixel_compute_scale`."""
    if align_corners:
        return float(np.float32(length - 1) / np.float32(size - 1)) if size > 1 else 0.0
    return float(np.float32(length) / np.float32(size) if factor is None else np.float32(1.0 / factor))


@register_converter("aten::upsample_bilinear2d")
def upsample_bilinear2d(
    b: QdqBuilder, x: Any, size: Sequence[int] | None, align_corners: bool, factors_h: Any = None, factors_w: Any = None
) -> QTensor | Expr:
    """Returns the bilinear interpolation, with the input's parameters.

    PyTorch's ratios are passed as the second half of `roi`, which these modes ignore.
    """
    factors = factors_h if isinstance(factors_h, (list, tuple)) or factors_h is None else [factors_h, factors_w]
    sizes, given = _sizes(b, x, size, factors)
    mode = "align_corners" if align_corners else "half_pixel"
    ratios = [_ratio(int(n), s, f, align_corners) for n, s, f in zip(shape_of(x)[2:], sizes, given, strict=True)]
    y = relax.op.image.resize2d(
        b.real(x), relax.ShapeExpr(sizes), roi=[0.0, 0.0, *ratios], layout="NCHW", method="linear",
        coordinate_transformation_mode=mode,
    )  # fmt: skip
    return b.quantized_like(x, b.emit(y, "bilinear"))
