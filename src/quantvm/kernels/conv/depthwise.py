"""Depthwise int8 convolution, NHWC: one filter per channel; vectors run along the channels.

FBGEMM's depthwise kernel adds taps in pairs, in row-major order, with saturation to int16 (vpmaddubsw). With
`saturate_pairs`, two exact int16 products and one saturating addition do the same here, on any target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.builder import (
    LANES,
    Buffer,
    Expr,
    Kernel,
    argument,
    cast,
    ceil_div,
    flat,
    intrinsic,
    local,
    prim_func,
    ramp,
    symbolic_batch,
    typed,
)
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.kernels.staging import stage_rows

from .depthwise_interleaved import MIN_CHANNELS, InterleavedDepthwise
from .epilogue import NO_POST_OPS, PostOps
from .program_epilogue import OutputStage, epilogue_of
from .requantize import padded_channels

_CHANNELS_PER_STEP = 2 * LANES
_PIXELS_PER_TILE = 4


@dataclass(frozen=True)
class _Source:
    """The activations to read: a flat buffer, the offset of the first window, and the row stride."""

    buffer: Buffer
    offset: Expr
    row_stride: int


def depthwise_conv2d(
    shape: Conv2dShape,
    weight: np.ndarray,
    weight_zero_points: np.ndarray,
    input_zero_point: int,
    output_stage: OutputStage,
    *,
    saturate_pairs: bool,
    threads: int = 2,
    x_dtype: str = "uint8",
    isa: Isa = PLAIN,
    post: PostOps = NO_POST_OPS,
) -> Kernel:
    """Returns an exact depthwise convolution: (n, H, W, C) integers -> (n, OH, OW, C*multiplier) integers.

    Args:
        shape: geometry; groups == in_channels.
        weight: (O, KH, KW, 1) int8.
        weight_zero_points: (O,) integers.
        input_zero_point: zero point of x and value of the padding.
        output_stage: formula and per-channel vectors; or a float program without tensors.
        saturate_pairs: whether sums of two products saturate to int16, as in FBGEMM's depthwise kernel.
        threads: cores to cut the work for.
        x_dtype: uint8 or int8.
        isa: instruction groups that may be used.
        post: operators fused behind the output stage; no residual.

    Computes: acc = sum_pairs sat16(x[2i]*w[2i] + x[2i+1]*w[2i+1]) - zx*sum(w) - zw*(sum(x) - taps*zx), with the raw
        integers x and w; without saturation sat16 is the identity.
    """
    w_i8 = np.ascontiguousarray(weight.reshape(shape.out_channels, -1).T)
    symmetric = not weight_zero_points.any()
    if isa.pairs and symmetric and x_dtype == "uint8" and shape.out_channels == shape.in_channels >= MIN_CHANNELS:
        start = (-input_zero_point * w_i8.astype(np.int64).sum(0)).astype(np.int32)
        row: InterleavedDepthwise | _PlainDepthwise = InterleavedDepthwise(
            shape, w_i8, start, output_stage, saturate_pairs, isa, post
        )
    else:
        row = _PlainDepthwise(
            shape, w_i8, weight_zero_points, input_zero_point, output_stage, saturate_pairs, isa, post
        )
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, shape.in_height, shape.in_width, shape.in_channels), x_dtype)
        row.declare(n)
        y = argument("y", (n, shape.out_height, shape.out_width, shape.out_channels), row.epilogue.out_dtype)
        x_flat = flat(x, n * (shape.in_height * shape.in_width * shape.in_channels))
        y_flat = flat(y, n * (shape.out_height * shape.out_width * shape.out_channels))
        _emit_rows(shape, n, x_flat, y_flat, row, input_zero_point, threads, x_dtype)
    return Kernel(f"{row.name}{post.suffix}", builder.get(), row.constants, shape.macs)


def _emit_rows(
    shape: Conv2dShape, n: Expr, x: Buffer, y: Buffer, emitter: InterleavedDepthwise | _PlainDepthwise, zero_point: int,
    threads: int, x_dtype: str,
) -> None:  # fmt: skip
    """Emits the tasks, each of which computes some output rows; their input is staged if it has padding."""
    staged = any(shape.padding)
    task_rows = _task_rows(shape.out_height, threads)
    row_tasks = ceil_div(shape.out_height, task_rows)
    with T.parallel(0, n * row_tasks) as task:
        image, first_row = task // row_tasks, task % row_tasks * task_rows
        rows = tirx.min(task_rows, shape.out_height - first_row) if shape.out_height % task_rows else task_rows
        stride = shape.in_width * shape.in_channels
        source, offset = x, (image * shape.in_height + first_row * shape.stride[0]) * stride
        if staged:
            source, stride = stage_rows(shape, x, image, first_row, rows, task_rows, zero_point, x_dtype)
            offset = tirx.const(0, "int32")
        with T.serial(0, rows) as row:
            out_row = (image * shape.out_height + first_row + row) * (shape.out_width * shape.out_channels)
            emitter.emit_row(source, offset + row * (shape.stride[0] * stride), stride, y, out_row)


_TASK_ROWS = (8, 7, 9, 6, 10, 5, 11, 4, 12)
"""Possible numbers of rows of a task, the best first: few, so that staged rows stay in the first-level cache."""


def _task_rows(out_height: int, threads: int) -> int:
    """Returns the rows per task that minimize the greatest load of a thread; TVM gives each thread a run of tasks."""

    def greatest_load(rows: int) -> int:
        return min(out_height, ceil_div(ceil_div(out_height, rows), threads) * rows)

    fitting = [rows for rows in _TASK_ROWS if rows <= out_height] or [ceil_div(out_height, threads)]
    return min(fitting, key=greatest_load)


class _PlainDepthwise:
    """Emits the pixels of any depthwise convolution, in portable code."""

    name = "depthwise_conv2d_u8i8acc32"

    def __init__(
        self, shape: Conv2dShape, taps_i8: np.ndarray, weight_zero_points: np.ndarray, input_zero_point: int,
        output_stage: OutputStage, saturate_pairs: bool, isa: Isa, post: PostOps,
    ) -> None:  # fmt: skip
        self.shape, self.saturate_pairs = shape, saturate_pairs
        self.multiplier = shape.out_channels // shape.in_channels
        count = len(taps_i8)
        self.taps = taps_i8.astype(np.int16)
        zero_points = weight_zero_points.astype(np.int64)
        self.asymmetric = bool(zero_points.any())
        start = -input_zero_point * taps_i8.astype(np.int64).sum(0) + zero_points * count * input_zero_point
        self.start = start.astype(np.int32)
        self.weight_zero_points = zero_points.astype(np.int32)
        self.epilogue = epilogue_of(output_stage, padded_channels(shape.out_channels), count * 256 * 512, isa, post)
        extra = (self.weight_zero_points,) if self.asymmetric else ()
        self.constants = (self.taps, self.start, *extra, *self.epilogue.constants)

    def declare(self, n: Expr) -> None:
        self.w = argument("w", self.taps.shape, "int16")
        self.acc_start = argument("acc_start", self.start.shape, "int32")
        if self.asymmetric:
            self.w_zero = argument("w_zero", self.start.shape, "int32")
        self.epilogue.declare(n)

    def emit_row(self, x: Buffer, in_row: Expr, row_stride: int, y: Buffer, out_row: Expr) -> None:
        source, channels = _Source(x, in_row, row_stride), self.shape.out_channels
        if self.multiplier != 1:
            # A vector would repeat input channels; this is rare, so go one channel at a time.
            with T.serial(0, channels) as channel:
                self._columns(source, y, out_row, channel, 1)
            return
        whole = channels // _CHANNELS_PER_STEP
        if whole:
            with T.serial(0, whole) as step:
                self._columns(source, y, out_row, step * _CHANNELS_PER_STEP, _CHANNELS_PER_STEP)
        start = whole * _CHANNELS_PER_STEP
        for lanes in (16, 8, 4, 2, 1):
            if (channels - whole * _CHANNELS_PER_STEP) & lanes:
                self._columns(source, y, out_row, tirx.const(start, "int32"), lanes)
                start += lanes

    def _columns(self, source: _Source, y: Buffer, out_row: Expr, channel: Expr, lanes: int) -> None:
        width = self.shape.out_width
        if width >= _PIXELS_PER_TILE:
            with T.serial(0, width // _PIXELS_PER_TILE) as block:
                for i in range(_PIXELS_PER_TILE):
                    self._pixel(source, y, out_row, block * _PIXELS_PER_TILE + i, channel, lanes)
        for column in range(width // _PIXELS_PER_TILE * _PIXELS_PER_TILE, width):
            self._pixel(source, y, out_row, tirx.const(column, "int32"), channel, lanes)

    def _pixel(self, source: _Source, y: Buffer, out_row: Expr, column: Expr, channel: Expr, lanes: int) -> None:
        shape = self.shape
        at = source.offset + column * (shape.stride[1] * shape.in_channels)
        at = at + (channel if self.multiplier == 1 else channel // self.multiplier)
        products, values = [], []
        for tap in range(shape.kernel[0] * shape.kernel[1]):
            kh, kw = divmod(tap, shape.kernel[1])
            offset = kh * shape.dilation[0] * source.row_stride + kw * shape.dilation[1] * shape.in_channels
            x_i16 = cast(source.buffer[ramp(at + offset, lanes)], "int16", lanes)
            values.append(x_i16)
            products.append(x_i16 * self.w[tap, ramp(channel, lanes)])  # |x*w| <= 255*128 fits int16
        acc = local(lanes, "int32")
        T.buffer_store(acc, self.acc_start[ramp(channel, lanes)], [ramp(0, lanes)])
        for term in self._terms(products, lanes):
            T.buffer_store(acc, acc[ramp(0, lanes)] + cast(term, "int32", lanes), [ramp(0, lanes)])
        if self.asymmetric:
            for x_i16 in values:
                weighted = cast(x_i16, "int32", lanes) * self.w_zero[ramp(channel, lanes)]
                T.buffer_store(acc, acc[ramp(0, lanes)] - weighted, [ramp(0, lanes)])
        self.epilogue.store_lanes(
            y, out_row + column * shape.out_channels + channel, acc[ramp(0, lanes)], channel, lanes
        )

    def _terms(self, products: list[Expr], lanes: int) -> list[Expr]:
        if not self.saturate_pairs:
            return products
        pairs = [
            intrinsic("llvm.sadd.sat", typed("int16", lanes), products[i], products[i + 1])
            for i in range(0, len(products) - 1, 2)
        ]
        return pairs + products[len(pairs) * 2 :]
