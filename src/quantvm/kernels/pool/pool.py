"""Pooling and spatial means of quantized NHWC tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.arithmetic import dequantize_val, quantize_arr
from quantvm.kernels.builder import (
    Buffer,
    Expr,
    ImageFunction,
    Kernel,
    cast,
    clamp,
    flat,
    for_vectors,
    image_function,
    local,
    ramp,
    round_even,
    rounded,
    splat,
)
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.numerics.averages import adaptive_scale, qnnpack_factor, sides_factor
from quantvm.numerics.pool_geometry import PoolAxis, Taps, adaptive_taps
from quantvm.numerics.torch_engines import QuantParams, reciprocal_f32

from .avg_pool_words import avg_pool2d_words, word_factor


@dataclass(frozen=True)
class PoolShape:
    """Geometry of a 2-d pooling window; `padding` is (top, left, bottom, right)."""

    in_height: int
    in_width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def axis(self, index: int) -> PoolAxis:
        """Returns the rows (0) or the columns (1)."""
        return PoolAxis(
            (self.in_height, self.in_width)[index], self.kernel[index], self.stride[index], self.padding[index],
            self.padding[index + 2], self.dilation[index], self.ceil_mode,
        )  # fmt: skip

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self.axis(0).out_size

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self.axis(1).out_size


def windows_function(shape: PoolShape, dtype: str) -> AbstractContextManager[ImageFunction]:
    """Opens the PrimFunc of a pool: (n, H, W, C) -> (n, OH, OW, C), of one dtype."""
    in_size, out_size = (shape.in_height, shape.in_width), (shape.out_height, shape.out_width)
    return image_function(in_size, out_size, shape.channels, dtype, dtype)


@contextmanager
def output_pixels(shape: PoolShape, n: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Opens the loops over the output's pixels, the rows of all images in parallel: image, row and column."""
    with T.parallel(0, n * shape.out_height) as task, T.serial(0, shape.out_width) as column:
        yield task // shape.out_height, task % shape.out_height, column


def max_pool2d(shape: PoolShape, dtype: str = "uint8", *, repeats_border: bool = False) -> Kernel:
    """Returns the integer maximum over each window, padding ignored: (n, H, W, C) -> (n, OH, OW, C).

    Args:
        shape: geometry.
        dtype: uint8 or int8.
        repeats_border: whether taps in the padding read the nearest pixel of the image, as in QNNPACK. Without dilation
            that pixel belongs to the window anyway, so the result is the same.
    """
    lowest = 0 if dtype == "uint8" else -128
    with windows_function(shape, dtype) as f, output_pixels(shape, f.n) as (image, out_row, column):
        top, left = shape.axis(0).start(out_row), shape.axis(1).start(column)

        def emit(channel: Expr, lanes: int) -> None:
            best = local(lanes, dtype)
            T.buffer_store(best, splat(lowest, lanes, dtype), [ramp(0, lanes)])
            with T.serial(0, shape.kernel[0]) as kh, T.serial(0, shape.kernel[1]) as kw:
                in_row, in_column = top + kh * shape.dilation[0], left + kw * shape.dilation[1]
                if repeats_border:
                    in_row = T.max(T.min(in_row, shape.in_height - 1), 0)
                    in_column = T.max(T.min(in_column, shape.in_width - 1), 0)
                with T.If(_inside(shape, in_row, in_column)), T.Then():
                    value = f.x[image, in_row, in_column, ramp(channel, lanes)]
                    T.buffer_store(best, T.max(best[ramp(0, lanes)], value), [ramp(0, lanes)])
            T.buffer_store(f.y, best[ramp(0, lanes)], [image, out_row, column, ramp(channel, lanes)])

        _for_byte_vectors(shape.channels, emit)
    return Kernel("max_pool2d_u8", f.builder.get())


def _inside(shape: PoolShape, row: Expr, column: Expr) -> Expr:
    return tirx.all(row >= 0, row < shape.in_height, column >= 0, column < shape.in_width)


def _for_byte_vectors(channels: int, emit: object) -> None:
    wide = channels // 64 * 64
    if wide:
        with T.serial(0, channels // 64) as step:
            emit(step * 64, 64)  # type: ignore[operator]
    for_vectors(channels - wide, lambda at, lanes: emit(at + wide, lanes))  # type: ignore[operator]


def window_sums(x: Buffer, image: Expr, rows: Taps, columns: Taps, channel: Expr, lanes: int) -> Buffer:
    """Emits the int32 sums over the given rows and columns for `lanes` channels."""
    acc = local(lanes, "int32")
    T.buffer_store(acc, splat(0, lanes, "int32"), [ramp(0, lanes)])
    with T.serial(0, rows.count) as row, T.serial(0, columns.count) as column:
        at_row, at_column = rows.first + row * rows.step, columns.first + column * columns.step
        value = cast(x[image, at_row, at_column, ramp(channel, lanes)], "int32", lanes)
        T.buffer_store(acc, acc[ramp(0, lanes)] + value, [ramp(0, lanes)])
    return acc


def _scaled(acc_f32: Expr, multiplier: Expr, q: QuantParams, lanes: int, zero_before_rounding: bool) -> Expr:
    zero = splat(float(q.zero_point), lanes, "float32")
    product = acc_f32 * multiplier
    value = round_even(rounded(product, lanes) + zero) if zero_before_rounding else round_even(product) + zero
    low, high = float(q.quant_min), float(q.quant_max)
    value = clamp(value, splat(low, lanes, "float32"), splat(high, lanes, "float32"))
    return cast(cast(value, "int32", lanes), q.dtype, lanes)


def _divide(a: Expr, b: Expr) -> Expr:
    return tirx.div(a, b)


def avg_pool2d(
    shape: PoolShape, q: QuantParams, *, count_include_pad: bool, vec_channels: int = 16, channels_last: bool = True,
    isa: Isa = PLAIN,
) -> Kernel:  # fmt: skip
    """Returns `F.avg_pool2d` of a quantized tensor: (n, H, W, C) -> (n, OH, OW, C).

    Computes: size = window elements (with padding if count_include_pad, cut at its end in ceil mode);
        acc = sum(q) - zero_point*(elements inside); m = fl(1/size). The first C//vec_channels*vec_channels channels:
        rne(fl(acc*m)) + z; the others: rne(fl(fl(acc * fl(1/fl(1/m))) + z)). A tensor that PyTorch holds contiguous
        (`channels_last` false): rne(fl(fl(acc*m) + z)) everywhere.
    Exactness: torch 2.13 bit for bit; `vec_channels` is 16 on CPUs with AVX512, 8 on those with AVX2.
    """
    cut = shape.channels // vec_channels * vec_channels if channels_last else 0
    factor = word_factor(shape, q, count_include_pad=count_include_pad)
    if isa.packs and factor is not None and cut == shape.channels:
        return avg_pool2d_words(shape, q.zero_point, factor)
    with windows_function(shape, q.dtype) as f, output_pixels(shape, f.n) as (image, out_row, out_column):
        rows, columns, inside, size = averaged(shape, out_row, out_column, count_include_pad=count_include_pad)
        m = _divide(tirx.const(1.0, "float32"), cast(size, "float32", 1))
        one = tirx.const(1.0, "float32")
        tail_m = _divide(one, _divide(one, m)) if channels_last else m

        def emit(channel: Expr, lanes: int, is_tail: bool) -> None:
            sums = window_sums(f.x, image, rows, columns, channel, lanes)
            centred = sums[ramp(0, lanes)] - splat(inside * q.zero_point, lanes)
            factor = splat(tail_m if is_tail else m, lanes)
            value = _scaled(cast(centred, "float32", lanes), factor, q, lanes, is_tail)
            T.buffer_store(f.y, value, [image, out_row, out_column, ramp(channel, lanes)])

        for_vectors(cut, lambda at, lanes: emit(at, lanes, False))
        for_vectors(shape.channels - cut, lambda at, lanes: emit(at + cut, lanes, True))
    return Kernel("avg_pool2d_u8", f.builder.get())


def averaged(
    shape: PoolShape, out_row: Expr, out_column: Expr, *, count_include_pad: bool
) -> tuple[Taps, Taps, Expr, Expr]:
    """Returns the rows and columns that a window reads, their number of elements, and the divisor, which is never 0."""
    out = [(shape.axis(i), cast(at, "int32", 1)) for i, at in enumerate((out_row, out_column))]
    rows, columns = (axis.inside(at, T.min, T.max) for axis, at in out)
    inside = rows.count * columns.count
    if not count_include_pad:
        return rows, columns, inside, T.max(inside, 1)
    heights, widths = (axis.counted(at, T.min) for axis, at in out)
    return rows, columns, inside, heights * widths


def avg_pool2d_qnnpack(shape: PoolShape, q: QuantParams) -> Kernel:
    """Returns QNNPACK's average pool: (n, H, W, C) -> (n, OH, OW, C); a window as large as the image is its mean.

    Computes: acc = sum(q) - zero_point*(elements inside); m = fl(s / fl(s*KH*KW)), including padding;
        clip(rne(fl(acc*m)) + z).
    Exactness: torch 2.13 under the engine qnnpack, bit for bit (avg_pool2d, adaptive_avg_pool2d to 1x1, mean).
    """
    factor = qnnpack_factor(q.scale, shape.kernel[0] * shape.kernel[1])
    with windows_function(shape, q.dtype) as f, output_pixels(shape, f.n) as (image, out_row, out_column):
        rows, columns, inside, _ = averaged(shape, out_row, out_column, count_include_pad=False)

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, rows, columns, channel, lanes)
            centred = cast(sums[ramp(0, lanes)] - splat(inside * q.zero_point, lanes), "float32", lanes)
            value = _scaled(centred, splat(factor, lanes, "float32"), q, lanes, False)
            T.buffer_store(f.y, value, [image, out_row, out_column, ramp(channel, lanes)])

        for_vectors(shape.channels, emit)
    return Kernel("avg_pool2d_qnnpack_u8", f.builder.get())


def adaptive_avg_pool2d(
    in_size: tuple[int, int], channels: int, out_size: tuple[int, int], q: QuantParams, *, channels_last: bool = True
) -> Kernel:
    """Returns `F.adaptive_avg_pool2d` of a quantized tensor: (n, H, W, C) -> (n, OH, OW, C).

    Computes: window floor(i*H/OH)..ceil((i+1)*H/OH); acc = sum(q) - zero_point*size; s = fl(1/fl(1/size));
        first C//8*8 channels: rne(fma(acc, fl(1/s), z)); the others: rne(fl(fl(acc * fl(1/s)) + z)). A tensor that
        PyTorch holds contiguous (`channels_last` false): rne(fl(sum(q) * fl(fl(1/kh)/kw))).
    Exactness: torch 2.13 bit for bit.
    """
    (height, width), (out_height, out_width) = in_size, out_size
    cut = channels // 8 * 8
    with image_function(in_size, out_size, channels, q.dtype, q.dtype) as f, T.parallel(0, f.n) as image:
        for i in range(out_height):
            for j in range(out_width):
                rows, columns = adaptive_taps(i, height, out_height), adaptive_taps(j, width, out_width)
                if channels_last:
                    _pool_window(f.x, f.y, image, (i, j), rows, columns, cut, channels, q)
                else:
                    _pool_window_contiguous(f.x, f.y, image, (i, j), rows, columns, channels, q)
    return Kernel("adaptive_avg_pool2d_u8", f.builder.get())


def _pool_window(
    x: Buffer, y: Buffer, image: Expr, out: tuple[int, int], rows: Taps, columns: Taps, cut: int, channels: int,
    q: QuantParams,
) -> None:  # fmt: skip
    size = rows.count * columns.count
    scale = QuantParams(float(adaptive_scale(size)), q.zero_point, q.dtype)

    def emit(channel: Expr, lanes: int, is_tail: bool) -> None:
        sums = window_sums(x, image, rows, columns, channel, lanes)
        acc = cast(sums[ramp(0, lanes)] - splat(q.zero_point * size, lanes, "int32"), "float32", lanes)
        if is_tail:
            value = _scaled(acc, splat(reciprocal_f32(scale.scale), lanes, "float32"), q, lanes, True)
        else:
            value = cast(quantize_arr(acc, scale, lanes), q.dtype, lanes)
        T.buffer_store(y, value, [image, *out, ramp(channel, lanes)])

    for_vectors(cut, lambda at, lanes: emit(at, lanes, False))
    for_vectors(channels - cut, lambda at, lanes: emit(at + cut, lanes, True))


def _pool_window_contiguous(
    x: Buffer, y: Buffer, image: Expr, out: tuple[int, int], rows: Taps, columns: Taps, channels: int, q: QuantParams
) -> None:  # fmt: skip
    factor = sides_factor(rows.count, columns.count)

    def emit(channel: Expr, lanes: int) -> None:
        sums = cast(window_sums(x, image, rows, columns, channel, lanes)[ramp(0, lanes)], "float32", lanes)
        value = round_even(sums * splat(factor, lanes, "float32"))
        T.buffer_store(y, cast(cast(value, "int32", lanes), q.dtype, lanes), [image, *out, ramp(channel, lanes)])

    for_vectors(channels, emit)


def spatial_mean(in_size: tuple[int, int], channels: int, q: QuantParams, *, channels_last: bool = True) -> Kernel:
    """Returns `x.mean([2, 3])` of a quantized tensor: (n, H, W, C) -> (n, C).

    Computes: D_VAL, a float32 sum over pixels in the order of `at::sum`, fl(./(H*W)), Q_ARR. A tensor that PyTorch
        holds contiguous (`channels_last` false): rne(fl(sum(q) / (H*W))).
    Exactness: torch 2.13 bit for bit. Order (aten/src/ATen/native/cpu/SumKernel.cpp): blocks of 16 pixels are summed
        into level 0, which is carried up every 16 blocks; the last C%32 channels (C%4 below 8 channels) are four such
        sums over every fourth pixel.
    """
    if not channels_last:
        return _mean_contiguous(in_size, channels, q)
    pixels = in_size[0] * in_size[1]
    cut = channels // 32 * 32 if channels >= 8 else channels // 4 * 4
    with image_function(in_size, (), channels, q.dtype, q.dtype) as f:
        x_flat = flat(f.x, f.n * (pixels * channels))
        with T.parallel(0, f.n) as image:

            def real(pixel: Expr, channel: Expr, lanes: int) -> Expr:
                at = (image * pixels + pixel) * channels + channel
                return dequantize_val(x_flat[ramp(at, lanes)], q, lanes)

            def finish(total: Expr, channel: Expr, lanes: int) -> None:
                mean = _divide(total, splat(float(pixels), lanes, "float32"))
                T.buffer_store(f.y, cast(quantize_arr(mean, q, lanes), q.dtype, lanes), [image, ramp(channel, lanes)])

            def main(channel: Expr, lanes: int) -> None:
                total = _cascade_sum(pixels, lambda i: real(i, channel, lanes), lanes)
                finish(total[ramp(0, lanes)], channel, lanes)

            def tail(at: Expr, lanes: int) -> None:
                channel, quarter = at + cut, pixels // 4
                parts = [_cascade_sum(quarter, lambda i, p=p: real(i * 4 + p, channel, lanes), lanes) for p in range(4)]
                first, index = parts[0], ramp(0, lanes)
                for i in range(quarter * 4, pixels):
                    T.buffer_store(first, first[index] + real(tirx.const(i, "int32"), channel, lanes), [index])
                for part in parts[1:]:
                    T.buffer_store(first, first[index] + part[index], [index])
                finish(first[index], channel, lanes)

            for_vectors(cut, main)
            for_vectors(channels - cut, tail)
    return Kernel("spatial_mean_u8", f.builder.get())


def _mean_contiguous(in_size: tuple[int, int], channels: int, q: QuantParams) -> Kernel:
    with image_function(in_size, (), channels, q.dtype, q.dtype) as f, T.parallel(0, f.n) as image:

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, Taps(0, in_size[0]), Taps(0, in_size[1]), channel, lanes)[ramp(0, lanes)]
            mean = _divide(cast(sums, "float32", lanes), splat(float(in_size[0] * in_size[1]), lanes, "float32"))
            value = cast(cast(round_even(mean), "int32", lanes), q.dtype, lanes)
            T.buffer_store(f.y, value, [image, ramp(channel, lanes)])

        for_vectors(channels, emit)
    return Kernel("spatial_mean_u8", f.builder.get())


def _cascade_sum(count: int, value: object, lanes: int) -> Buffer:
    """Emits the four-level cascade sum of value(0..count-1) and returns the buffer that holds it."""
    power = max(4, int(np.ceil(np.log2(max(count, 2)))) // 4)
    step = 1 << power
    index = ramp(0, lanes)
    levels = [local(lanes, "float32") for _ in range(4)]
    zero = splat(0.0, lanes, "float32")
    for level in levels:
        T.buffer_store(level, zero, [index])
    done = 0
    while done + step <= count:
        with T.serial(0, step) as i:
            T.buffer_store(levels[0], levels[0][index] + value(i + done), [index])  # type: ignore[operator]
        done += step
        for j in range(1, 4):
            T.buffer_store(levels[j], levels[j][index] + levels[j - 1][index], [index])
            T.buffer_store(levels[j - 1], zero, [index])
            if done & ((step - 1) << (j * power)):
                break
    for i in range(done, count):
        T.buffer_store(levels[0], levels[0][index] + value(tirx.const(i, "int32")), [index])  # type: ignore[operator]
    for level in levels[1:]:
        T.buffer_store(levels[0], levels[0][index] + level[index], [index])
    return levels[0]
