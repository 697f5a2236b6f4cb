"""Converters of ONNX operators that index, slice and reshape, which TVM's importer supports only in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import constant, shape_of
from quantvm.qdq.expressions import is_constant

from .converters import constant_input, converts, taken


def _listed(inputs: Sequence[Any], index: int, attrs: dict[str, Any], name: str) -> list[int] | None:
    """Returns integers from an attribute (old operator sets) or a constant input (new ones)."""
    if name in attrs:
        return [int(value) for value in attrs[name]]
    given = constant_input(inputs, index, name)
    return None if given is None else [int(value) for value in given.ravel()]


@converts("Slice")
def _slice(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, except for bounds that are attributes (before opset 10)."""
    x = inputs[0]
    if not isinstance(x.ty, relax.TensorType) or any(
        value is not None and not is_constant(value) for value in inputs[1:]
    ):
        return None
    shape = shape_of(x)
    starts, ends, axes, steps = (
        _listed(inputs, index, attrs, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    if starts is None or ends is None:
        raise UnsupportedOpError("it has no starts or no ends")
    axes = list(range(len(starts))) if axes is None else [axis % len(shape) for axis in axes]
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        if isinstance(shape[axis], int) and not len(range(*slice(start, end, step).indices(shape[axis]))):
            raise UnsupportedOpError(f"it takes nothing of dimension {axis}, whose size is {shape[axis]}; there is no "
                                     "code for empty tensors")  # fmt: skip
    return relax.op.strided_slice(x, axes, starts, ends) if "starts" in attrs else None


@converts("Unsqueeze")
def _unsqueeze(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x = inputs[0]
    axes = _listed(inputs, 1, attrs, "axes")
    if axes is None:
        raise UnsupportedOpError("it has no axes")
    if is_constant(x) or not isinstance(x.ty, relax.TensorType):
        return None
    return relax.op.expand_dims(x, axes)


@converts("OneHot")
def _one_hot(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns `values[1]` at each index, else `values[0]`; negative indices count from the end."""
    indices, depth, values = inputs[0], constant_input(inputs, 1, "depth"), constant_input(inputs, 2, "values")
    assert depth is not None
    assert values is not None
    count, dtype = int(depth.ravel()[0]), str(indices.ty.dtype)
    rank = len(shape_of(indices))
    axis = int(attrs.get("axis", -1)) % (rank + 1)
    places = np.arange(count).reshape([-1] + [1] * (rank - axis))
    indices = bb.normalize(relax.op.expand_dims(indices, axis))
    matches = [bb.normalize(relax.op.equal(indices, constant(at.astype(dtype), dtype)))
               for at in (places, places - count)]  # fmt: skip
    off, on = (constant(value, str(values.dtype)) for value in values.ravel())
    return relax.op.where(bb.normalize(relax.op.logical_or(*matches)), on, off)


@converts("Compress")
def _compress(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Takes the slices selected by a constant condition, or elements of the flat tensor if no axis is given."""
    x, condition = inputs[0], constant_input(inputs, 1, "conditions")
    assert condition is not None
    axis = attrs.get("axis")
    if axis is None:
        x, axis = bb.normalize(relax.op.reshape(x, [-1])), 0
    places = np.flatnonzero(condition)
    if not len(places):
        raise UnsupportedOpError("it selects nothing, and empty tensors are not supported")
    return taken(bb, x, int(axis) % len(shape_of(x)), places)


@converts("Scatter")
def _scatter(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Converts Scatter as ScatterElements; TVM's own converter writes out of bounds if the batch is dynamic."""
    return relax.op.scatter_elements(*inputs, axis=int(attrs.get("axis", 0)))


@converts("MaxPool")
def _max_pool(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, which returns only the maxima."""
    if attrs["tvm_custom"]["num_outputs"] > 1:
        raise UnsupportedOpError("its second output, the places of the maxima, is not supported")
    return None


@converts("RoiAlign")
def _roi_align(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, except for half-pixel coordinates: these are scaled before they are shifted."""
    if attrs.get("mode", b"avg") != b"avg":
        raise UnsupportedOpError("mode max takes the largest of weighted corners in ONNX Runtime; use mode avg")
    default = b"half_pixel" if attrs["tvm_custom"]["opset"] >= 16 else b"output_half_pixel"
    if attrs.get("coordinate_transformation_mode", default) != b"half_pixel":
        return None
    x, regions, images = inputs
    size, ratio = (
        [int(attrs.get(name, 1)) for name in ("output_height", "output_width")],
        attrs.get("sampling_ratio", 0),
    )
    scaled = bb.normalize(relax.op.multiply(regions, constant(attrs.get("spatial_scale", 1.0), "float32")))
    scaled = bb.normalize(relax.op.subtract(scaled, constant(0.5, "float32")))
    is_taken = None
    if not ratio:  # a region without height or width has no samples: ONNX Runtime returns 0
        begin, end = (bb.normalize(relax.op.strided_slice(scaled, [1], [at], [at + 2])) for at in (0, 2))
        longer = bb.normalize(relax.op.astype(bb.normalize(relax.op.greater(end, begin)), "int32"))
        is_taken = bb.normalize(relax.op.greater(bb.normalize(relax.op.min(longer, [1], True)), constant(0, "int32")))
        scaled = bb.normalize(
            relax.op.where(is_taken, scaled, constant(np.asarray([[0, 0, 1, 1]], np.float32), "float32"))
        )
    images = bb.normalize(relax.op.astype(bb.normalize(relax.op.expand_dims(images, [1])), "float32"))
    placed = bb.normalize(relax.op.concat([images, scaled], 1))
    y = relax.op.vision.roi_align(x, placed, size, 1.0, int(ratio), True, "NCHW", "avg")
    if is_taken is None:
        return y
    is_taken = bb.normalize(relax.op.expand_dims(is_taken, [2, 3]))
    return relax.op.where(is_taken, bb.normalize(y), constant(0, "float32"))


@converts("SpaceToDepth")
def _space_to_depth(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, which supports the only mode before operator set 28."""
    if attrs.get("mode", b"DCR") != b"DCR":
        raise UnsupportedOpError(f"mode {attrs['mode'].decode()} is not supported; use DCR")
    return None


__all__: list[str] = []
