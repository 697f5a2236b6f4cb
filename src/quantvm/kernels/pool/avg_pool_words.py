"""Average pools in 16-bit integers, used if they give the same bits as PyTorch's float formula.

A window's sum fits int16, and one multiplication (vpmulhrsw) rounds it to the same integer as the float product. When
the kernel is made, this is checked for every possible sum. It fails if an average can lie half-way between integers,
which the float formula rounds to even; so windows with an even number of elements use floats. Rows are summed first,
into a row of scratch, so that overlapping windows share the sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels import x86
from quantvm.kernels.builder import (
    Buffer,
    Expr,
    Kernel,
    flat,
    image_function,
    local,
    ramp,
    splat,
)
from quantvm.numerics.torch_engines import QuantParams

if TYPE_CHECKING:
    from .pool import PoolShape

_BLOCKS = (64, 32, 16)
"""Numbers of channels that are computed at once: those of a full register, then smaller ones for the rest."""
_SHIFT = 15


def word_factor(shape: PoolShape, q: QuantParams, *, count_include_pad: bool) -> int | None:
    """Returns f so that (acc*f + 2^14) >> 15 = rne(fl(acc * fl(1/size))) for every acc of a window, or None.

    None also if windows differ in size or are dilated, or if channels do not fill vectors.
    """
    size = shape.kernel[0] * shape.kernel[1]
    if q.dtype != "uint8" or shape.channels % _BLOCKS[-1] or shape.dilation != (1, 1):
        return None
    if not _equal_windows(shape, count_include_pad):
        return None
    if size * 255 > np.iinfo(np.int16).max:
        return None
    acc_i32 = np.arange(-q.zero_point * size, (255 - q.zero_point) * size + 1, dtype=np.int32)
    multiplier_f32 = np.float32(1) / np.float32(size)
    expected = np.rint(acc_i32.astype(np.float32) * multiplier_f32).astype(np.int32)
    nearest = round((1 << _SHIFT) / size)
    for factor in (nearest, nearest - 1, nearest + 1):
        fits = factor <= np.iinfo(np.int16).max
        if fits and np.array_equal((acc_i32 * factor + (1 << _SHIFT - 1)) >> _SHIFT, expected):
            return factor
    return None


def _equal_windows(shape: PoolShape, count_include_pad: bool) -> bool:
    """Whether every window is divided by its full number of elements."""
    for axis in (shape.axis(0), shape.axis(1)):
        counted = axis.counted if count_include_pad else (lambda out, axis=axis: axis.inside(out).count)
        if any(counted(out) != axis.kernel for out in range(axis.out_size)):
            return False
    return True


def avg_pool2d_words(shape: PoolShape, zero_point: int, factor: int) -> Kernel:
    """Returns an average pool of uint8 with a factor of `word_factor`: (n, H, W, C) -> (n, OH, OW, C).

    Computes: acc = sum(q - zero_point), in int16; ((acc*factor + 2^14) >> 15) + zero_point.
    Exactness: that of `pool.avg_pool2d`, by the choice of the factor.
    """
    pixel, row = shape.channels, shape.in_width * shape.channels
    out_row_size = shape.out_width * shape.channels
    in_size, out_size = (shape.in_height, shape.in_width), (shape.out_height, shape.out_width)
    with image_function(in_size, out_size, shape.channels, "uint8", "uint8") as f:
        x_flat = flat(f.x, f.n * (shape.in_height * row))
        y_flat = flat(f.y, f.n * (shape.out_height * out_row_size))
        with T.parallel(0, f.n * shape.out_height) as task:
            image, out_row = task // shape.out_height, task % shape.out_height
            top = shape.axis(0).start(out_row)
            padded_width = shape.in_width + shape.padding[1] + shape.padding[3]
            scratch = T.alloc_buffer((padded_width * _BLOCKS[0],), "int16")
            source, target = image * (shape.in_height * row), task * out_row_size

            def block(channel: Expr, width: int) -> None:
                _sum_rows(shape, x_flat, source + channel, top, scratch, width, zero_point)
                with T.serial(0, shape.out_width) as column:
                    value = _average(shape, scratch, column, width, factor, zero_point)
                    T.buffer_store(y_flat, value, [ramp(target + column * pixel + channel, width)])

            done = 0
            for width in _BLOCKS:
                count = (shape.channels - done) // width
                if count:
                    with T.serial(0, count) as step:
                        block(done + step * width, width)
                done += count * width
    return Kernel("avg_pool2d_u8", f.builder.get())


def _sum_rows(
    shape: PoolShape, x: Buffer, source: Expr, top: Expr, scratch: Buffer, width: int, zero_point: int
) -> None:
    """Fills scratch with sums over the window's rows, zero points subtracted; padding adds nothing."""
    lanes, half = width // 4, width // 2
    height, kernel = shape.in_height, shape.kernel[0]
    before, after = shape.padding[1], shape.padding[3]

    def words(row: Expr, column: Expr, high: bool) -> Expr:
        at = source + (row * shape.in_width + column) * shape.channels
        return x86.widen(x[ramp(at, 4 * lanes)], width, high)

    def store(column: Expr, high: bool, value: Expr) -> None:
        T.buffer_store(scratch, value, [ramp((column + before) * width + high * half, half)])

    for edge, count in ((0, before), (shape.in_width + before, after)):
        with T.serial(0, count) as column:
            T.buffer_store(scratch, splat(0, width, "int16"), [ramp((edge + column) * width, width)])
    with T.serial(0, shape.in_width) as column, T.If(tirx.all(top >= 0, top + kernel <= height)):
        with T.Then():
            for high in (False, True):
                total = splat(-zero_point * kernel, half, "int16")
                for i in range(kernel):
                    total = total + words(top + i, column, high)
                store(column, high, total)
        with T.Else():
            for high in (False, True):
                acc = local(half, "int16")
                T.buffer_store(acc, splat(0, half, "int16"), [ramp(0, half)])
                with T.serial(tirx.max(top, 0), tirx.min(top + kernel, height)) as row:
                    value = words(row, column, high) - splat(zero_point, half, "int16")
                    T.buffer_store(acc, acc[ramp(0, half)] + value, [ramp(0, half)])
                store(column, high, acc[ramp(0, half)])


def _average(shape: PoolShape, scratch: Buffer, column: Expr, width: int, factor: int, zero_point: int) -> Expr:
    lanes, half = width // 4, width // 2
    halves = []
    for high in (False, True):
        first = column * (shape.stride[1] * width) + high * half
        total = scratch[ramp(first, half)]
        for i in range(1, shape.kernel[1]):
            total = total + scratch[ramp(first + i * width, half)]
        value = x86.multiply_high(total, splat(factor, half, "int16"), lanes)
        halves.append(value + splat(zero_point, half, "int16"))
    return x86.narrow(halves[0], halves[1], lanes)
