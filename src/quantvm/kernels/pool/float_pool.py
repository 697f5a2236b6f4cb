"""Averages over windows under numerics=qdq: dequantize, float32 average, quantize; NHWC."""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.builder import (
    Buffer,
    Expr,
    Kernel,
    cast,
    for_vectors,
    image_function,
    local,
    ramp,
    splat,
)
from quantvm.kernels.float.program_emitter import quantize
from quantvm.numerics.pool_geometry import Taps, adaptive_taps
from quantvm.numerics.qdq import Quantization
from quantvm.numerics.torch_engines import QuantParams

from .pool import PoolShape, averaged, output_pixels, window_sums

Window = tuple[Taps, Taps]
"""Rows and columns."""


def float_avg_pool2d(
    shape: PoolShape, q: QuantParams | None, output: Quantization | None, *, count_include_pad: bool
) -> Kernel:
    """Returns quantize(avg_pool2d(dequantize(x))): (n, H, W, C) -> (n, OH, OW, C).

    Computes: y = fl(fl(scale * (sum(q) - zero_point*inside)) / size) with an exact integer sum; for float32 input,
        fl(sum / size), summed pixel by pixel.

    Args:
        shape: geometry.
        q: parameters of x, or None if it is float32.
        output: how the average is quantized, or None to keep it in float32.
        count_include_pad: whether the size of a window includes padding.
    """

    def emit(x: Buffer, y: Buffer, n: Expr) -> None:
        with output_pixels(shape, n) as (image, row, column):
            rows, columns, inside, size = averaged(shape, row, column, count_include_pad=count_include_pad)
            _average(x, y, image, (row, column), (rows, columns), (inside, size), q, output, shape.channels)

    return _kernel(
        "avg_pool2d", (shape.in_height, shape.in_width), (shape.out_height, shape.out_width), shape.channels, q, output,
        emit,
    )  # fmt: skip


def float_adaptive_avg_pool2d(
    in_size: tuple[int, int], channels: int, out_size: tuple[int, int], q: QuantParams | None,
    output: Quantization | None,
) -> Kernel:  # fmt: skip
    """Returns quantize(adaptive_avg_pool2d(dequantize(x))): (n, H, W, C) -> (n, OH, OW, C), as `float_avg_pool2d`."""
    (height, width), (out_height, out_width) = in_size, out_size

    def emit(x: Buffer, y: Buffer, n: Expr) -> None:
        with T.parallel(0, n) as image:
            for i in range(out_height):
                for j in range(out_width):
                    rows, columns = adaptive_taps(i, height, out_height), adaptive_taps(j, width, out_width)
                    size = tirx.const(rows.count * columns.count, "int32")
                    _average(x, y, image, (i, j), (rows, columns), (size, size), q, output, channels)

    return _kernel("adaptive_avg_pool2d", in_size, out_size, channels, q, output, emit)


def _kernel(
    name: str, in_size: tuple[int, int], out_size: tuple[int, int], channels: int, q: QuantParams | None,
    output: Quantization | None, emit: Callable[[Buffer, Buffer, Expr], None],
) -> Kernel:  # fmt: skip
    in_dtype, out_dtype = "float32" if q is None else q.dtype, "float32" if output is None else output.q.dtype
    with image_function(in_size, out_size, channels, in_dtype, out_dtype) as f:
        emit(f.x, f.y, f.n)
    return Kernel(f"float_{name}_{'f32' if output is None else 'u8'}", f.builder.get())


def _average(
    x: Buffer, y: Buffer, image: Expr, out: tuple[Expr, Expr], window: Window, counts: tuple[Expr, Expr],
    q: QuantParams | None, output: Quantization | None, channels: int,
) -> None:  # fmt: skip
    inside, size = counts

    def emit(channel: Expr, lanes: int) -> None:
        if q is None:
            total = _float_sums(x, image, window, channel, lanes)[ramp(0, lanes)]
        else:
            sums = window_sums(x, image, *window, channel, lanes)[ramp(0, lanes)]
            centred = sums - splat(cast(inside, "int32", 1) * q.zero_point, lanes)
            total = cast(centred, "float32", lanes) * splat(q.scale_f32, lanes, "float32")
        mean = tirx.div(total, splat(cast(size, "float32", 1), lanes))
        value = mean if output is None else cast(quantize(mean, output, lanes), output.q.dtype, lanes)
        T.buffer_store(y, value, [image, *out, ramp(channel, lanes)])

    for_vectors(channels, emit)


def _float_sums(x: Buffer, image: Expr, window: Window, channel: Expr, lanes: int) -> Buffer:
    """Emits the float32 sum over a window, pixel after pixel, and returns the buffer that holds it."""
    rows, columns = window
    total = local(lanes, "float32")
    T.buffer_store(total, splat(0.0, lanes, "float32"), [ramp(0, lanes)])
    with T.serial(0, rows.count) as row, T.serial(0, columns.count) as column:
        at_row, at_column = rows.first + row * rows.step, columns.first + column * columns.step
        value = x[image, at_row, at_column, ramp(channel, lanes)]
        T.buffer_store(total, total[ramp(0, lanes)] + value, [ramp(0, lanes)])
    return total
