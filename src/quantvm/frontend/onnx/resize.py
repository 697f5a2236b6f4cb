"""Resize and Upsample of ONNX, with the arithmetic of ONNX Runtime's own kernels.

Source positions and weights of all outputs are computed at import, in float32 as in ONNX Runtime. Nearest is `R.take`
along each dimension. Linear is the weighted sum of the corners of a cell; cubic, of four neighbours along each of two
dimensions. Products and sums follow ONNX Runtime's order, each rounded separately.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import constant, shape_of
from quantvm.qdq.expressions import constant_value, is_constant

from .converters import converts, taken

_f32 = np.float32


@converts("Resize", "Upsample")
def _resize(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns the resized tensor; tf_crop_and_resize is left to TVM's converter.

    Raises:
        UnsupportedOpError: antialiasing, sizes that are computed at run time, resizing of a dynamic size, or
            interpolation along other dimensions than height and width (and depth).
    """
    x = inputs[0]
    if attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return None
    mode = attrs.get("mode", b"nearest").decode()
    coordinates = attrs.get("coordinate_transformation_mode", b"half_pixel").decode()
    if len(inputs) <= 2:  # Upsample, and Resize of opset 10
        coordinates = attrs.get("coordinate_transformation_mode", b"asymmetric").decode()
    scales, sizes = _scales(inputs, attrs, shape_of(x))
    if attrs.get("antialias", 0) and any(scale < 1 for scale in scales):
        raise UnsupportedOpError("antialias=1 is not supported; resize with antialias=0")
    changed = [axis for axis, (old, new, scale) in enumerate(zip(shape_of(x), sizes, scales, strict=True))
               if old is not new and (old != new or scale != 1)]  # fmt: skip
    for axis in changed:
        if not isinstance(shape_of(x)[axis], int):
            raise UnsupportedOpError(f"dimension {axis} is dynamic and cannot be resized; fix it by batch='static'")
    if mode == "nearest":
        rounding = "simple" if "nearest_mode" not in attrs and len(inputs) <= 2 else "round_prefer_floor"
        rounding = attrs.get("nearest_mode", rounding.encode()).decode()
        for axis in changed:
            old = shape_of(x)[axis]
            places = _nearest(_origins(old, sizes[axis], scales[axis], coordinates), rounding, bool(scales[axis] < 1))
            x = taken(bb, x, axis, np.clip(places, 0, old - 1))
        return x
    axes = _interpolated(changed, len(sizes), mode)
    if not changed:
        return x
    origins = {axis: _origins(shape_of(x)[axis], sizes[axis], scales[axis], coordinates) for axis in axes}
    if mode == "linear":
        return _linear(bb, x, origins)
    return _cubic(bb, x, origins, _f32(attrs.get("cubic_coeff_a", -0.75)), bool(attrs.get("exclude_outside", 0)))


def _interpolated(changed: list[int], rank: int, mode: str) -> list[int]:
    """Returns the dimensions that ONNX Runtime interpolates along, including unchanged ones."""
    choices = [[rank - 2, rank - 1]] if rank > 1 else []
    if mode == "linear":
        choices += {4: [[1, 2]], 5: [[2, 3, 4]]}.get(rank, [])
    for axes in choices:
        if set(changed) <= set(axes) and (rank < 5 or mode != "linear" or len(axes) == 3):
            return axes
    raise UnsupportedOpError(f"mode {mode} along the dimensions {changed} of {rank}; resize height and width only")


def _constant(inputs: Sequence[Any], index: int) -> np.ndarray | None:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        return None
    if not is_constant(value):
        raise UnsupportedOpError("its sizes are computed at run time; give example_inputs, or constant sizes or scales")
    array = constant_value(value)
    return array if array.size else None


def _scales(
    inputs: Sequence[Any], attrs: dict[str, Any], shape: list[Any]
) -> tuple[list[np.float32], list[Any]]:  # fmt: skip
    """Returns the scale and the new size of each dimension."""
    is_upsample = len(inputs) <= 2  # or Resize of opset 10
    factors, wanted = _constant(inputs, 1 if is_upsample else 2), _constant(inputs, 3)
    if factors is None and "scales" in attrs:
        factors = np.array(attrs["scales"], _f32)
    rank = len(shape)
    axes = [int(a) % rank for a in attrs.get("axes", range(rank))]
    scales, sizes = [_f32(1)] * rank, list(shape)
    if wanted is not None:
        policy = attrs.get("keep_aspect_ratio_policy", b"stretch").decode()
        pairs = [(axis, int(size)) for axis, size in zip(axes, wanted, strict=True)]
        if policy != "stretch":
            choose: Callable[..., Any] = min if policy == "not_larger" else max
            factor = choose(_f32(size) / _f32(shape[axis]) for axis, size in pairs)
            pairs = [(axis, int(np.floor(factor * _f32(shape[axis]) + _f32(0.5)))) for axis, _ in pairs]
        for axis, size in pairs:
            if isinstance(shape[axis], int):
                scales[axis], sizes[axis] = _f32(size) / _f32(shape[axis]), size
                if policy != "stretch":
                    scales[axis] = factor
        return scales, sizes
    if factors is None:
        raise UnsupportedOpError("neither scales nor sizes are given")
    for axis, factor in zip(axes, factors.astype(_f32), strict=True):
        if isinstance(shape[axis], int):
            scales[axis], sizes[axis] = factor, int(_f32(factor) * _f32(shape[axis]))
        elif factor != 1:
            scales[axis], sizes[axis] = factor, None
    return scales, sizes


def _origins(old: int, new: int, scale: np.float32, mode: str) -> np.ndarray:
    """Returns the position of each output in input coordinates, in float32."""
    at = np.arange(new, dtype=_f32)
    if scale == 1:
        return at
    if mode == "half_pixel":
        return (at + _f32(0.5)) / scale - _f32(0.5)
    if mode == "asymmetric":
        return at / scale
    if mode == "pytorch_half_pixel":
        return (at + _f32(0.5)) / scale - _f32(0.5) if new > 1 else np.zeros(1, _f32)
    if mode == "tf_half_pixel_for_nn":
        return (at + _f32(0.5)) / scale
    if mode == "align_corners":
        return at * _f32(old - 1) / _f32(new - 1) if new > 1 else np.zeros(1, _f32)
    if mode == "half_pixel_symmetric":
        adjustment = _f32(new) / (scale * _f32(old))
        centre = _f32(old) / _f32(2)
        return centre * (_f32(1) - adjustment) + (at + _f32(0.5)) / scale - _f32(0.5)
    raise UnsupportedOpError(f"coordinate_transformation_mode {mode} is not supported; resize with half_pixel")


def _nearest(origins: np.ndarray, rounding: str, shrinks: bool) -> np.ndarray:
    if rounding == "simple":
        return (np.ceil(origins) if shrinks else np.trunc(origins)).astype(np.int64)
    if rounding == "floor":
        return np.floor(origins).astype(np.int64)
    if rounding == "ceil":
        return np.ceil(origins).astype(np.int64)
    whole = np.floor(origins)
    is_half = origins == np.trunc(origins) + _f32(0.5)
    away = np.where(origins < 0, np.ceil(origins - _f32(0.5)), np.floor(origins + _f32(0.5)))  # as C's roundf
    if rounding == "round_prefer_floor":
        return np.where(is_half, whole, away).astype(np.int64)
    return away.astype(np.int64)


def _neighbours(origins: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices before and after each origin, and the distances from both."""
    inside = np.clip(origins, _f32(0), _f32(size - 1))
    first = np.minimum(inside.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    far_first, far_second = np.abs(inside - first.astype(_f32)), np.abs(inside - second.astype(_f32))
    same = first == second
    far_first[same] = far_second[same] = 0.5
    return first, second, far_first, far_second


def _linear(bb: relax.BlockBuilder, x: Any, origins: dict[int, np.ndarray]) -> Any:
    """Returns the weighted sum of all corners, in an order in which the last dimension varies fastest."""
    shape = shape_of(x)
    ends = {}
    for axis, found in origins.items():
        first, second, from_first, from_second = _neighbours(found, shape[axis])
        ends[axis] = ((first, from_second), (second, from_first))
    y = None
    for corner in itertools.product((0, 1), repeat=len(ends)):
        at, weight = x, np.ones((), _f32)
        for axis, end in reversed(list(zip(ends, corner, strict=True))):
            places, factor = ends[axis][end]
            at = taken(bb, at, axis, places)
            along = [1] * len(shape)
            along[axis] = -1
            weight = weight * factor.reshape(along)
        term = bb.normalize(relax.op.multiply(at, constant(weight, "float32")))
        y = term if y is None else bb.normalize(relax.op.add(y, term))
    return y


def _cubic(
    bb: relax.BlockBuilder, x: Any, origins: dict[int, np.ndarray], a: np.float32, exclude_outside: bool
) -> Any:  # fmt: skip
    """Returns the weighted sums of four neighbours along the last dimension, then along the one before it."""
    rank = len(shape_of(x))
    for axis, found in reversed(origins.items()):
        size = shape_of(x)[axis]
        weights = _cubic_weights(found - np.floor(found).astype(_f32), a)
        places = np.floor(found).astype(np.int64)[:, None] + np.arange(-1, 3)
        if exclude_outside:
            weights[(places < 0) | (places >= size)] = 0
            weights /= weights.sum(axis=1, dtype=_f32, keepdims=True)
        y = None
        for tap in range(4):
            along = [1] * rank
            along[axis] = -1
            factor = constant(weights[:, tap].reshape(along), "float32")
            piece = taken(bb, x, axis, np.clip(places[:, tap], 0, size - 1))
            term = bb.normalize(relax.op.multiply(piece, factor))
            y = term if y is None else bb.normalize(relax.op.add(y, term))
        x = y
    return x


def _cubic_weights(s: np.ndarray, a: np.float32) -> np.ndarray:
    """Returns the weights (outputs, 4) of the four neighbours; s is the distance from the second of them."""
    s = np.abs(s).astype(_f32)
    one, two, three, four, five, eight = (_f32(v) for v in (1, 2, 3, 4, 5, 8))
    before, after, last = s + one, one - s, two - s
    return np.stack([
        ((a * before - five * a) * before + eight * a) * before - four * a,
        ((a + two) * s - (a + three)) * s * s + one,
        ((a + two) * after - (a + three)) * after * after + one,
        ((a * last - five * a) * last + eight * a) * last - four * a,
    ], axis=1).astype(_f32)  # fmt: skip


__all__: list[str] = []
