"""Copies input rows into a scratch buffer of the task, with the zero point outside of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm.tirx.script.builder as T
from tvm import tirx

from .builder import Buffer, Expr, for_vectors, ramp, splat

if TYPE_CHECKING:
    from quantvm.kernels.schedule.schedule import Conv2dShape

_SLACK = 64
"""Bytes after the last row that a full-width vector load may touch."""


def stage_rows(
    shape: Conv2dShape, x: Buffer, image: Expr, first_row: Expr, rows: Expr, task_rows: int, zero_point: int,
    x_dtype: str, channels: int | None = None,
) -> tuple[Buffer, int]:  # fmt: skip
    """Emits the copy of the input of `rows` output rows from `first_row`; returns the scratch and its row stride.

    Args:
        shape: geometry of the convolution.
        x: flat NHWC input.
        image: index of the image.
        first_row: first output row of the task.
        rows: output rows of this task, at most `task_rows`.
        task_rows: output rows that the scratch has room for.
        zero_point: value of padding and of added channels.
        x_dtype: dtype of x.
        channels: channels of a pixel in the scratch; at least the input's, which is the default.
    """
    stager = _RowStager(shape, x, image, zero_point, x_dtype, channels or shape.in_channels)
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    scratch = T.alloc_buffer((((task_rows - 1) * shape.stride[0] + span) * stager.row_stride + _SLACK,), x_dtype)
    top, bottom = shape.padding[0], shape.padding[2]
    with T.serial(0, (rows - 1) * shape.stride[0] + span) as row:
        in_row = first_row * shape.stride[0] + row - top
        base = row * stager.row_stride
        if not top and not bottom:
            stager.copy_row(scratch, base, in_row)
        else:
            with T.If(tirx.all(in_row >= 0, in_row < shape.in_height)):
                with T.Then():
                    stager.copy_row(scratch, base, in_row)
                with T.Else():
                    stager.fill(scratch, base, stager.row_stride)
    return scratch, stager.row_stride


def stage_windows(
    shape: Conv2dShape, x: Buffer, image: Expr, first_row: Expr, rows: Expr, task_rows: int, zero_point: int,
    x_dtype: str, run: int,
) -> Buffer:  # fmt: skip
    """Emits the copy of the windows of `rows` output rows; returns a flat scratch of (rows, OW, groups, `run`).

    A run holds a group's taps in the order (row, column, channel); its end is filled with the zero point.

    Args:
        shape: geometry of the convolution.
        x: flat NHWC input.
        image: index of the image.
        first_row: first output row of the task.
        rows: output rows of this task, at most `task_rows`.
        task_rows: output rows that the scratch has room for.
        zero_point: value of padding and of the end of a run.
        x_dtype: dtype of x.
        run: bytes of a group's window in the scratch.
    """
    group_in = shape.in_channels // shape.groups
    taps, pixel = shape.kernel[0] * shape.kernel[1] * group_in, shape.groups * run
    scratch = T.alloc_buffer((task_rows * shape.out_width * pixel + _SLACK,), x_dtype)
    zero = tirx.const(zero_point, x_dtype)
    with T.serial(0, rows) as row, T.serial(0, shape.out_width) as column, T.serial(0, shape.groups) as group:
        base = (row * shape.out_width + column) * pixel + group * run
        for c in range(taps, run):
            T.buffer_store(scratch, zero, [base + c])
        with T.serial(0, shape.kernel[0]) as kh, T.serial(0, shape.kernel[1]) as kw:
            y = (first_row + row) * shape.stride[0] + kh * shape.dilation[0] - shape.padding[0]
            z = column * shape.stride[1] + kw * shape.dilation[1] - shape.padding[1]
            to = base + (kh * shape.kernel[1] + kw) * group_in
            source = ((image * shape.in_height + y) * shape.in_width + z) * shape.in_channels + group * group_in
            if any(shape.padding):
                with T.If(tirx.all(y >= 0, y < shape.in_height, z >= 0, z < shape.in_width)):
                    with T.Then():
                        copy_flat(scratch, to, x, source, group_in)
                    with T.Else():
                        for_vectors(group_in, lambda at, k: T.buffer_store(scratch, splat(zero, k), [ramp(to + at, k)]))
            else:
                copy_flat(scratch, to, x, source, group_in)
    return scratch


class _RowStager:
    def __init__(
        self, shape: Conv2dShape, x: Buffer, image: Expr, zero_point: int, x_dtype: str, channels: int
    ) -> None:
        self.shape, self.x, self.image, self.channels = shape, x, image, channels
        self.zero = tirx.const(zero_point, x_dtype)
        self.row_stride = (shape.in_width + shape.padding[1] + shape.padding[3]) * channels

    def copy_row(self, scratch: Buffer, base: Expr, in_row: Expr) -> None:
        shape, channels = self.shape, self.channels
        source = (self.image * shape.in_height + in_row) * (shape.in_width * shape.in_channels)
        left, right = shape.padding[1] * channels, shape.padding[3] * channels
        self.fill(scratch, base, left)
        body = base + left
        if channels == shape.in_channels:
            self._copy(scratch, body, source, shape.in_width * channels)
        else:
            with T.serial(0, shape.in_width) as column:
                for c in range(channels):
                    value = self.x[source + column * shape.in_channels + c] if c < shape.in_channels else self.zero
                    T.buffer_store(scratch, value, [body + column * channels + c])
        self.fill(scratch, body + shape.in_width * channels, right)

    def fill(self, buffer: Buffer, start: Expr, count: int) -> None:
        for_vectors(count, lambda at, k: T.buffer_store(buffer, splat(self.zero, k), [ramp(start + at, k)]))

    def _copy(self, buffer: Buffer, start: Expr, source: Expr, count: int) -> None:
        copy_flat(buffer, start, self.x, source, count)


def copy_flat(target: Buffer, start: Expr, source: Buffer, at: Expr, count: int) -> None:
    """Emits target[start:start+count] = source[at:at+count] for byte-sized elements of flat buffers."""
    wide = count // 64 * 64
    if wide:
        with T.serial(0, count // 64) as step:
            T.buffer_store(target, source[ramp(at + step * 64, 64)], [ramp(start + step * 64, 64)])
    for_vectors(
        count - wide,
        lambda k, lanes: T.buffer_store(target, source[ramp(at + wide + k, lanes)], [ramp(start + wide + k, lanes)]),
    )
