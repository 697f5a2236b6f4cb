"""Depthwise int8 convolution, NHWC: one filter a channel, all arithmetic along the channel vector.

FBGEMM's depthwise kernel adds taps in pairs, in row-major order, with saturation to int16 (vpmaddubsw). Under
`saturate_pairs` the same happens here with two exact int16 products and one saturating addition, on any target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.numerics import Requantization

from .builder import (
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
from .requantize import RequantizeEpilogue, padded_channels
from .schedule import Conv2dShape
from .staging import stage_rows

_CHANNELS_PER_STEP = 2 * LANES
_PIXELS_PER_TILE = 4


@dataclass(frozen=True)
class _Source:
    """Where activations are read from: a flat buffer, the offset of the first window row, and strides."""

    buffer: Buffer
    offset: Expr
    row_stride: int


def depthwise_conv2d(
    shape: Conv2dShape,
    weight: np.ndarray,
    weight_zero_points: np.ndarray,
    input_zero_point: int,
    requantization: Requantization,
    *,
    saturate_pairs: bool,
    threads: int = 2,
    x_dtype: str = "uint8",
) -> Kernel:
    """Returns an exact depthwise convolution: (n, H, W, C) integers -> (n, OH, OW, C*multiplier) integers.

    Args:
        shape: geometry; groups == in_channels.
        weight: (O, KH, KW, 1) int8.
        weight_zero_points: (O,) integers.
        input_zero_point: what padding stands for.
        requantization: rule and per-channel vectors.
        saturate_pairs: whether pairs of products saturate to int16, as in FBGEMM's depthwise kernel.
        threads: cores to cut the work for.
        x_dtype: uint8 or int8.

    Computes: acc = sum_pairs sat16(x[2i]*w[2i] + x[2i+1]*w[2i+1]) - zx*sum(w) - zw*(sum(x) - taps*zx), with the raw
        integers x and w; without saturation sat16 is the identity.
    """
    emitter = _DepthwiseEmitter(
        shape, weight, weight_zero_points, input_zero_point, requantization, saturate_pairs, threads, x_dtype
    )
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, shape.in_height, shape.in_width, shape.in_channels), x_dtype)
        emitter.declare()
        y = argument("y", (n, shape.out_height, shape.out_width, shape.out_channels), requantization.output.dtype)
        emitter.emit(
            n,
            flat(x, n * (shape.in_height * shape.in_width * shape.in_channels)),
            flat(y, n * (shape.out_height * shape.out_width * shape.out_channels)),
        )
    return Kernel("depthwise_conv2d_u8i8acc32", builder.get(), emitter.constants, shape.macs)


class _DepthwiseEmitter:
    """Emits the loops of one depthwise convolution into the open PrimFunc."""

    def __init__(
        self, shape: Conv2dShape, weight: np.ndarray, weight_zero_points: np.ndarray, input_zero_point: int,
        requantization: Requantization, saturate_pairs: bool, threads: int, x_dtype: str,
    ) -> None:  # fmt: skip
        self.shape, self.threads, self.x_dtype = shape, threads, x_dtype
        self.saturate_pairs, self.zero_point = saturate_pairs, input_zero_point
        self.out_dtype = requantization.output.dtype
        self.multiplier = shape.out_channels // shape.in_channels
        taps = shape.kernel[0] * shape.kernel[1]
        w_i64 = weight.reshape(shape.out_channels, taps).astype(np.int64)
        self.taps = np.ascontiguousarray(w_i64.T.astype(np.int16))
        zero_points = weight_zero_points.astype(np.int64)
        self.asymmetric = bool(zero_points.any())
        start = -input_zero_point * w_i64.sum(1) + zero_points * taps * input_zero_point
        self.start = start.astype(np.int32)
        self.weight_zero_points = zero_points.astype(np.int32)
        self.epilogue = RequantizeEpilogue(requantization, padded_channels(shape.out_channels), taps * 256 * 512)
        extra = (self.weight_zero_points,) if self.asymmetric else ()
        self.constants = (self.taps, self.start, *extra, *self.epilogue.constants)

    def declare(self) -> None:
        self.w = argument("w", self.taps.shape, "int16")
        self.acc_start = argument("acc_start", self.start.shape, "int32")
        if self.asymmetric:
            self.w_zero = argument("w_zero", self.start.shape, "int32")
        self.epilogue.declare()

    def emit(self, n: Expr, x: Buffer, y: Buffer) -> None:
        shape = self.shape
        staged = any(shape.padding)
        # short tasks keep the staged rows in the first-level cache
        task_rows = max(1, min(8, ceil_div(shape.out_height, self.threads)))
        row_tasks = ceil_div(shape.out_height, task_rows)
        row_stride = shape.in_width * shape.in_channels
        with T.parallel(0, n * row_tasks) as task:
            image, first_row = task // row_tasks, task % row_tasks * task_rows
            rows = tirx.min(task_rows, shape.out_height - first_row) if shape.out_height % task_rows else task_rows
            if staged:
                buffer, stride = stage_rows(shape, x, image, first_row, rows, task_rows, self.zero_point, self.x_dtype)
                source = _Source(buffer, tirx.const(0, "int32"), stride)
            else:
                offset = (image * shape.in_height + first_row * shape.stride[0]) * row_stride
                source = _Source(x, offset, row_stride)
            with T.serial(0, rows) as row:
                out_row = (image * shape.out_height + first_row + row) * (shape.out_width * shape.out_channels)
                self._row(source, row * (shape.stride[0] * source.row_stride), y, out_row)

    def _row(self, source: _Source, in_row: Expr, y: Buffer, out_row: Expr) -> None:
        channels = self.shape.out_channels
        if self.multiplier != 1:
            # Channels of the input repeat within a vector; rare enough to go one channel at a time.
            with T.serial(0, channels) as channel:
                self._columns(source, in_row, y, out_row, channel, 1)
            return
        whole = channels // _CHANNELS_PER_STEP
        if whole:
            with T.serial(0, whole) as step:
                self._columns(source, in_row, y, out_row, step * _CHANNELS_PER_STEP, _CHANNELS_PER_STEP)
        start = whole * _CHANNELS_PER_STEP
        for lanes in (16, 8, 4, 2, 1):
            if (channels - whole * _CHANNELS_PER_STEP) & lanes:
                self._columns(source, in_row, y, out_row, tirx.const(start, "int32"), lanes)
                start += lanes

    def _columns(self, source: _Source, in_row: Expr, y: Buffer, out_row: Expr, channel: Expr, lanes: int) -> None:
        width = self.shape.out_width
        if width >= _PIXELS_PER_TILE:
            with T.serial(0, width // _PIXELS_PER_TILE) as block:
                for i in range(_PIXELS_PER_TILE):
                    self._pixel(source, in_row, y, out_row, block * _PIXELS_PER_TILE + i, channel, lanes)
        for column in range(width // _PIXELS_PER_TILE * _PIXELS_PER_TILE, width):
            self._pixel(source, in_row, y, out_row, tirx.const(column, "int32"), channel, lanes)

    def _pixel(
        self, source: _Source, in_row: Expr, y: Buffer, out_row: Expr, column: Expr, channel: Expr, lanes: int
    ) -> None:
        shape = self.shape
        at = source.offset + in_row + column * (shape.stride[1] * shape.in_channels)
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
        value = self.epilogue.apply(acc[ramp(0, lanes)], channel, lanes)
        T.buffer_store(
            y, cast(value, self.out_dtype, lanes), [ramp(out_row + column * shape.out_channels + channel, lanes)]
        )

    def _terms(self, products: list[Expr], lanes: int) -> list[Expr]:
        if not self.saturate_pairs:
            return products
        pairs = [
            intrinsic("llvm.sadd.sat", typed("int16", lanes), products[i], products[i + 1])
            for i in range(0, len(products) - 1, 2)
        ]
        return pairs + products[len(pairs) * 2 :]
