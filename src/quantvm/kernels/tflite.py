"""Averages, sums and requantization that round like TFLite's reference kernels; NHWC, integers stored as uint8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.elementwise.elementwise import table
from quantvm.kernels.float.program_emitter import behind_ties
from quantvm.kernels.pool.pool import PoolShape, averaged, output_pixels, window_sums, windows_function
from quantvm.numerics.pool_geometry import Taps
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.qdq import Quantization
from quantvm.numerics.tflite import TfliteFactor, mean_factor, requantize, scale_factor, sum_factor
from quantvm.numerics.torch_engines import QuantParams

from .builder import (
    Expr,
    Kernel,
    cast,
    for_vectors,
    image_function,
    ramp,
    round_even,
    rounded,
    splat,
)


def tflite_avg_pool2d(shape: PoolShape, output: Quantization, offset: int) -> Kernel:
    """Returns AVERAGE_POOL_2D: (n, H, W, C) -> (n, OH, OW, C), uint8 under the same parameters.

    Computes: `numerics.tflite.average` of the integers inside of a window, limited to the output's range.

    Args:
        shape: geometry; padding never counts.
        output: range of the result, as stored.
        offset: number that was added to TFLite's integers to store them: 128 if they are int8.
    """
    with windows_function(shape, "uint8") as f, output_pixels(shape, f.n) as (image, row, column):
        rows, columns, inside, size = averaged(shape, row, column, count_include_pad=False)

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, rows, columns, channel, lanes)[ramp(0, lanes)]
            total = sums - splat(inside * offset, lanes)
            sign = total >> splat(31, lanes, "int32")  # 0, or -1 for negative sums
            nudged = total + ((splat(size // 2, lanes) ^ sign) - sign)
            mean = tirx.truncdiv(nudged, splat(size, lanes)) + splat(offset, lanes, "int32")
            T.buffer_store(f.y, _stored(mean, output, lanes), [image, row, column, ramp(channel, lanes)])

        for_vectors(shape.channels, emit)
    return Kernel("avg_pool2d_tflite_u8", f.builder.get())


def tflite_reduction(
    kind: str, in_size: tuple[int, int], channels: int, q: QuantParams, output: Quantization, offset: int
) -> Kernel:
    """Returns MEAN or SUM over height and width: (n, H, W, C) -> (n, 1, 1, C), `numerics.tflite.mean` or `.total`.

    Args:
        kind: mean or sum.
        in_size: height and width.
        channels: of the image.
        q: parameters of the image.
        output: how the result is quantized.
        offset: number that was added to TFLite's integers to store them: 128 if they are int8. A mean ignores it.
    """
    count = in_size[0] * in_size[1]
    factor = mean_factor(q, output.q, count) if kind == "mean" else scale_factor(q, output.q)
    in_float = kind == "sum" and offset > 0
    ratio, bias = sum_factor(QuantParams(q.scale, q.zero_point - offset, "int8"), output.q, count)
    with image_function(in_size, (1, 1), channels, "uint8", "uint8") as f, T.parallel(0, f.n) as image:

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, Taps(0, in_size[0]), Taps(0, in_size[1]), channel, lanes)
            total = sums[ramp(0, lanes)] - splat(count * (offset if in_float else q.zero_point), lanes, "int32")
            if in_float:
                scaled = rounded(cast(total, "float32", lanes) * splat(ratio, lanes, "float32"), lanes)
                steps = behind_ties(scaled + splat(bias, lanes, "float32"), lanes)
                value = cast(round_even(steps), "int32", lanes)
            else:
                value = _multiplied(total, factor, lanes)
            value += splat(output.q.zero_point, lanes, "int32")
            T.buffer_store(f.y, _stored(value, output, lanes), [image, 0, 0, ramp(channel, lanes)])

        for_vectors(channels, emit)
    return Kernel(f"spatial_{kind}_tflite_u8", f.builder.get())


def tflite_requantize(item_shape: Sequence[int], q: QuantParams, output: Quantization, pytorch: PyTorch) -> Kernel:
    """Returns QUANTIZE of integers, (n, *item_shape): a table of `numerics.tflite.requantize`."""
    values = np.clip(requantize(np.arange(256), q, output.q), output.low, output.high).astype(np.uint8)
    return table(item_shape, values, values, in_dtype="uint8", pytorch=pytorch, name="requantize")


def _stored(value_i32: Expr, output: Quantization, lanes: int) -> Expr:
    low, high = (splat(limit, lanes, "int32") for limit in (output.low, output.high))
    return cast(T.max(T.min(value_i32, high), low), output.q.dtype, lanes)


def _multiplied(x_i32: Expr, factor: TfliteFactor, lanes: int) -> Expr:
    """TIR form of `numerics.tflite.multiply`."""

    def constant(value: int) -> Expr:
        return splat(value, lanes, "int64")

    sign_bits = constant(63)
    product = cast(x_i32, "int64", lanes) * constant(factor.multiplier << max(factor.shift, 0))
    nudged = product + constant(1 << 30) + (product >> sign_bits) * constant((1 << 31) - 1)
    high = (nudged + ((nudged >> sign_bits) & constant((1 << 31) - 1))) >> constant(31)
    right = max(-factor.shift, 0)
    mask = (1 << right) - 1
    above = constant(mask >> 1) - (high >> sign_bits) - (high & constant(mask))  # negative if rounding up
    return cast((high >> constant(right)) - (above >> sign_bits), "int32", lanes)
