"""Quantization along an axis: activations that have a scale for each channel.

Int8 kernels support this for weights only: a sum over channels with different scales is not an integer sum. So
per-channel quantizations of activations, and the operators that read them, stay in float; the integers are those of the
program, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from quantvm.qdq.expressions import constant_value, is_constant, shape_of


def has_known_axis(quantize: Any) -> bool:
    """Returns whether a quantize has known scales and zero points, one for each index along an axis."""
    return all(is_constant(argument) and constant_value(argument).ndim for argument in quantize.args[1:3])


def quantized_along_axis(builder: relax.BlockBuilder, x_f32: Any, quantize: Any, *, divides: bool, name: str) -> Any:
    """Emits a quantize with scales along an axis as a chain of operators, and returns its integers.

    Computes: clip(rne(fl(x * fl(1/scale_c))) + zero_point_c), or rne(fl(x / scale_c)) if `divides`.
    Exactness: `quantized_decomposed.quantize_per_channel`, bit for bit; if `divides`, QuantizeLinear of ONNX.

    Args:
        builder: builder of the function.
        x_f32: float32 values in logical order.
        quantize: the call, for which `has_known_axis` holds.
        divides: whether x is divided by the scale, not multiplied by its reciprocal.
        name: name of the result.
    """
    rank, axis, dtype = len(shape_of(x_f32)), int(quantize.attrs.axis), str(quantize.attrs.out_dtype)

    def along(vector: np.ndarray) -> Any:
        shape = [1] * rank
        shape[axis % rank] = -1
        return relax.const(np.ascontiguousarray(vector.astype(np.float32).reshape(shape)), "float32")

    scales, zero_points = (constant_value(argument) for argument in quantize.args[1:3])
    if divides:
        steps = builder.emit(relax.op.divide(x_f32, along(scales)), f"{name}_steps")
    else:
        inverses = 1.0 / scales.astype(np.float64)  # then rounded to float32: equals a float32 division
        steps = builder.emit(relax.op.multiply(x_f32, along(inverses)), f"{name}_steps")
    rounded = builder.emit(relax.op.round(steps), f"{name}_rounded")
    shifted = builder.emit(relax.op.add(rounded, along(zero_points)), f"{name}_shifted")
    limits = np.iinfo(dtype)
    limited = builder.emit(relax.op.clip(shifted, int(limits.min), int(limits.max)), f"{name}_limited")
    return builder.emit(relax.op.astype(limited, dtype), name)
