"""Converters of ONNX operators for which TVM's importer emits TIR functions instead of Relax operators.

Here they become Relax operators. Moves of values become `R.take` along one dimension with constant indices, which works
on integers as well as on floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import constant, shape_of
from quantvm.qdq.expressions import constant_value, is_call, is_constant

Converter = Callable[[relax.BlockBuilder, Sequence[Any], dict[str, Any]], Any]
"""Takes the builder, the inputs (None for an omitted one) and the attributes.

Returns an expression, or None to leave the node to TVM's own converter.
"""

CONVERTERS: dict[str, Converter] = {}
_LONGEST_SUM = 256
"""Largest number of slices of a running sum; each is a separate addition."""


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Returns a decorator that registers a converter of the operators."""

    def register(converter: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, converter))
        return converter

    return register


def optional_input(inputs: Sequence[Any], index: int) -> Any:
    """Returns an input, or None if it is omitted."""
    return inputs[index] if index < len(inputs) else None


def constant_input(inputs: Sequence[Any], index: int, what: str) -> np.ndarray | None:
    """Returns an input that must be constant, or None if it is omitted."""
    value = optional_input(inputs, index)
    if value is None:
        return None
    if not is_constant(value):
        raise UnsupportedOpError(f"its {what} are computed at run time; they have to be constant")
    return constant_value(value)


def taken(bb: relax.BlockBuilder, x: Any, axis: int, places: np.ndarray) -> Any:
    """Returns the slices of x at the given indices of one dimension; x itself if these are all slices in order."""
    size = shape_of(x)[axis]
    if isinstance(size, int) and np.array_equal(places, np.arange(size)):
        return x
    return bb.normalize(relax.op.take(x, constant(places, "int64"), axis=axis, mode="clip"))


def _static(x: Any, axis: int, what: str) -> int:
    size = shape_of(x)[axis]
    if not isinstance(size, int):
        raise UnsupportedOpError(f"{what} of dimension {axis}, whose size is dynamic; fix it by batch='static'")
    return size


@converts("Clip")
def _clip(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x = inputs[0]
    bounds = []
    for index, name, none in ((1, "min", -np.inf), (2, "max", np.inf)):
        bound = optional_input(inputs, index)
        bounds.append(constant(attrs.get(name, none), str(x.ty.dtype)) if bound is None else bound)
    if not all(is_constant(bound) for bound in bounds) or str(x.ty.dtype) != "float32":
        return bb.normalize(relax.op.minimum(bb.normalize(relax.op.maximum(x, bounds[0])), bounds[1]))
    low, high = (float(constant_value(bound)) for bound in bounds)
    low, high = (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)
    low = min(low, high)  # ONNX: if min > max, all values become max
    if (low, high) == (-np.inf, np.inf):
        return x
    return relax.op.nn.relu(x) if (low, high) == (0.0, np.inf) else relax.op.clip(x, low, high)


@converts("Pad")
def _pad(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x, rank = inputs[0], len(shape_of(inputs[0]))
    given = constant_input(inputs, 1, "pads")
    pads = [int(p) for p in (attrs.get("pads", attrs.get("paddings", ())) if given is None else given)]
    axes = constant_input(inputs, 3, "axes")
    places = range(rank) if axes is None else [int(a) % rank for a in axes]
    widths = [(0, 0)] * rank
    for axis, begin, end in zip(places, pads[: len(places)], pads[len(places) :], strict=True):
        widths[axis] = (begin, end)
    mode = attrs.get("mode", b"constant").decode()
    for axis, (begin, end) in enumerate(widths):  # a negative width crops
        if min(begin, end) < 0:
            size = _static(x, axis, "padding")
            x = taken(bb, x, axis, np.arange(max(-begin, 0), size - max(-end, 0)))
    widths = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    if mode != "constant":
        for axis, width in enumerate(widths):
            if any(width):
                indices = np.arange(_static(x, axis, "padding"))
                x = taken(bb, x, axis, np.pad(indices, width, mode=mode))
        return x
    value = constant_input(inputs, 2, "padded values")
    number = float(attrs.get("value", 0.0) if value is None or not value.size else value.ravel()[0])
    if not any(any(width) for width in widths):
        return x
    return relax.op.nn.pad(x, [w for width in widths for w in width], "constant", number)


@converts("Tile")
def _tile(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x = inputs[0]
    repeats = constant_input(inputs, 1, "repeats")
    assert repeats is not None
    for axis, count in enumerate(int(r) for r in repeats):
        if count == 1:
            continue
        if isinstance(shape_of(x)[axis], int):
            x = taken(bb, x, axis, np.tile(np.arange(shape_of(x)[axis]), count))
        else:
            x = bb.normalize(relax.op.concat([x] * count, axis))
    return x


@converts("Expand")
def _expand(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x = inputs[0]
    if not is_constant(inputs[1]):
        return None  # TVM's converter handles sizes that are computed at run time
    target = constant_value(inputs[1])
    given, wanted = shape_of(x), [int(d) for d in target]
    rank = max(len(given), len(wanted))
    given, wanted = [1] * (rank - len(given)) + given, [1] * (rank - len(wanted)) + wanted
    return relax.op.broadcast_to(x, [old if new == 1 else new for old, new in zip(given, wanted, strict=True)])


@converts("CumSum")
def _cumsum(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    x = inputs[0]
    axis_array = constant_input(inputs, 1, "axis")
    assert axis_array is not None
    axis = int(axis_array.ravel()[0]) % len(shape_of(x))
    size = _static(x, axis, "the running sum")
    if size > _LONGEST_SUM:
        raise UnsupportedOpError(f"a running sum over {size} slices; the most that is supported is {_LONGEST_SUM}")
    slices = [taken(bb, x, axis, np.array([at])) if size > 1 else x for at in range(size)]
    slices = slices[::-1] if attrs.get("reverse", 0) else slices
    sums = slices[:1]
    for piece in slices[1:]:  # one by one, as ONNX Runtime adds them
        sums.append(bb.normalize(relax.op.add(sums[-1], piece)))
    if attrs.get("exclusive", 0):
        sums = [bb.normalize(relax.op.zeros_like(slices[0])), *sums[:-1]]
    return relax.op.concat(sums[::-1] if attrs.get("reverse", 0) else sums, axis)


@converts("Einsum")
def _einsum(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    return relax.op.einsum(list(inputs), re.sub(r"\s", "", attrs["equation"].decode()))


@converts("Gemm")
def _gemm(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns alpha * (A @ B) + beta * C; the factor follows the product, so that the product can take integers."""
    a, b, c = inputs[0], inputs[1], optional_input(inputs, 2)
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    a = bb.normalize(relax.op.permute_dims(a, [1, 0])) if attrs.get("transA", 0) else a
    b = bb.normalize(relax.op.permute_dims(b, [1, 0])) if attrs.get("transB", 0) else b
    y = bb.normalize(relax.op.matmul(a, b))
    if alpha != 1.0:
        y = bb.normalize(relax.op.multiply(y, constant(alpha, "float32")))
    if c is None or beta == 0.0:
        return y
    if beta != 1.0:
        factor = np.float32(beta)
        is_known = is_constant(c)
        c = constant(constant_value(c) * factor, "float32") if is_known else bb.normalize(
            relax.op.multiply(c, constant(factor, "float32"))
        )  # fmt: skip
    return relax.op.add(y, c)


@converts("MatMul")
def _matmul(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """A vector is a row on the left, and a column on the right."""
    a, b = inputs
    is_row, is_column = len(shape_of(a)) == 1, len(shape_of(b)) == 1
    a = bb.normalize(relax.op.expand_dims(a, [0])) if is_row else a
    b = bb.normalize(relax.op.expand_dims(b, [1])) if is_column else b
    y = bb.normalize(relax.op.matmul(a, b))
    rank = len(shape_of(y))
    gone = [axis for axis, is_vector in ((rank - 2, is_row), (rank - 1, is_column)) if is_vector]
    return relax.op.squeeze(y, gone) if gone else y


@converts("Celu")
def _celu(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    x, alpha, zero = inputs[0], constant(attrs.get("alpha", 1.0), "float32"), constant(0, "float32")
    grown = bb.normalize(relax.op.exp(bb.normalize(relax.op.divide(x, alpha))))
    below = bb.normalize(relax.op.multiply(alpha, bb.normalize(relax.op.subtract(grown, constant(1, "float32")))))
    return relax.op.add(bb.normalize(relax.op.nn.relu(x)), bb.normalize(relax.op.minimum(zero, below)))


def is_function(expr: Any) -> bool:
    """Returns whether TVM's converter emitted a function of its own, which cannot be lowered."""
    return is_call(expr, "relax.call_tir")


__all__ = ["CONVERTERS", "Converter", "constant_input", "converts", "is_function", "optional_input", "taken"]
