"""Converters of ONNX reductions and normalizations that TVM's importer supports in part, or computes differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import constant, shape_of

from .converters import Converter, constant_input, converts


def _is_alone(inputs: Sequence[Any], attrs: dict[str, Any]) -> bool:
    """Returns whether each element is reduced alone: there are no axes, and `noop_with_empty_axes` is set."""
    if not attrs.get("noop_with_empty_axes", 0) or attrs.get("axes"):
        return False
    axes = constant_input(inputs, 1, "axes")
    return axes is None or not axes.size


def _per_element(function: Callable[[Any], Any]) -> Converter:
    """Returns a converter that uses TVM's, but applies `function` if each element is reduced alone, which TVM omits."""

    def convert(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
        return function(inputs[0]) if _is_alone(inputs, attrs) else None

    return convert


converts("ReduceLogSum")(_per_element(relax.op.log))
converts("ReduceSumSquare")(_per_element(lambda x: relax.op.multiply(x, x)))
converts("ReduceL1", "ReduceL2")(_per_element(relax.op.abs))


def _register_widened(name: str, narrow: str, wide: str) -> None:
    """Registers a reduction of type `narrow` that TVM's converter computes in type `wide`."""

    def convert(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
        if str(inputs[0].ty.dtype) != narrow or _is_alone(inputs, attrs):
            return None
        axes = constant_input(inputs, 1, "axes") if "axes" not in attrs else attrs["axes"]
        axes = None if axes is None or not len(axes) else [int(axis) for axis in axes]
        found = getattr(relax.op, name[len("Reduce") :].lower())(
            bb.normalize(relax.op.astype(inputs[0], wide)), axes, bool(attrs.get("keepdims", 1))
        )
        return relax.op.astype(bb.normalize(found), narrow)

    converts(name)(convert)


_register_widened("ReduceMax", "bool", "uint8")
_register_widened("ReduceMin", "bool", "uint8")


@converts("ReduceMean")
def _reduce_mean(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, for floats."""
    if not str(inputs[0].ty.dtype).startswith("float"):
        raise UnsupportedOpError(f"the mean of {inputs[0].ty.dtype} is not supported; cast it to float before")
    return None


@converts("BatchNormalization")
def _batch_norm(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter with the stored mean and variance; in training mode, with those of the batch."""
    if not attrs.get("training_mode", 0):
        return None
    x, scale, bias = inputs[:3]
    rank = len(shape_of(x))
    axes = [axis for axis in range(rank) if axis != 1]
    centred = bb.normalize(relax.op.subtract(x, bb.normalize(relax.op.mean(x, axes, keepdims=True))))
    square = bb.normalize(relax.op.multiply(centred, centred))
    variance = bb.normalize(relax.op.mean(square, axes, keepdims=True))
    epsilon = constant(attrs.get("epsilon", 1e-5), "float32")
    deviation = bb.normalize(relax.op.sqrt(bb.normalize(relax.op.add(variance, epsilon))))
    along = [1, -1] + [1] * (rank - 2)
    scale, bias = (bb.normalize(relax.op.reshape(p, along)) for p in (scale, bias))
    scaled = bb.normalize(relax.op.multiply(bb.normalize(relax.op.divide(centred, deviation)), scale))
    y = bb.normalize(relax.op.add(scaled, bias))
    if attrs["tvm_custom"]["num_outputs"] == 1:
        return y
    momentum = attrs.get("momentum", 0.9)
    running = []
    for old, new in zip(inputs[3:5], (relax.op.mean(x, axes), relax.op.squeeze(variance)), strict=True):
        kept = bb.normalize(relax.op.multiply(old, constant(momentum, "float32")))
        added = bb.normalize(
            relax.op.multiply(bb.normalize(new), constant(np.float32(1) - np.float32(momentum), "float32"))
        )
        running.append(bb.normalize(relax.op.add(kept, added)))
    return relax.Tuple([y, *running])


@converts("LayerNormalization")
def _layer_norm(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter if scale and bias have the normalized shape and Y is the only output.

    Otherwise emits ONNX's own definition, with the mean and 1 / (standard deviation) as second and third outputs.
    """
    x, scale = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    rank = len(shape_of(x))
    axes = list(range(int(attrs.get("axis", -1)) % rank, rank))
    count = attrs["tvm_custom"]["num_outputs"]
    normalized = shape_of(x)[axes[0] :]
    if count == 1 and all(p is None or shape_of(p) == normalized for p in (scale, bias)):
        return None
    mean = bb.normalize(relax.op.mean(x, axes, keepdims=True))
    centred = bb.normalize(relax.op.subtract(x, mean))
    variance = bb.normalize(relax.op.mean(bb.normalize(relax.op.multiply(centred, centred)), axes, keepdims=True))
    shifted = bb.normalize(relax.op.add(variance, constant(attrs.get("epsilon", 1e-5), "float32")))
    inverse = bb.normalize(relax.op.divide(constant(1, "float32"), bb.normalize(relax.op.sqrt(shifted))))
    y = bb.normalize(relax.op.multiply(bb.normalize(relax.op.multiply(centred, inverse)), scale))
    y = y if bias is None else bb.normalize(relax.op.add(y, bias))
    return y if count == 1 else relax.Tuple([y, mean, inverse][:count])


__all__: list[str] = []
