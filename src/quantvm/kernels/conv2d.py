"""Dense and grouped int8 convolution and matrix product, NHWC, with the requantization fused into the epilogue.

Register blocking: a tile holds `pixels x vectors` accumulators of LANES output channels each; one step of the reduction
loads `vectors` weight vectors and splats `pixels` activation words. Where a window can leave the image, or channels do
not fill the dot product's step, each task first copies its rows into a padded scratch that holds the zero point there.
Depthwise convolutions are in depthwise.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
    local,
    prim_func,
    ramp,
    store_prefix,
    symbolic_batch,
)
from .dot import DotProduct
from .requantize import RequantizeEpilogue
from .staging import copy_flat, stage_rows


@dataclass(frozen=True)
class Conv2dShape:
    """Geometry of a 2-d convolution for one image; `padding` is (top, left, bottom, right)."""

    in_height: int
    in_width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        span = (self.kernel[0] - 1) * self.dilation[0] + 1
        return (self.in_height + self.padding[0] + self.padding[2] - span) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        span = (self.kernel[1] - 1) * self.dilation[1] + 1
        return (self.in_width + self.padding[1] + self.padding[3] - span) // self.stride[1] + 1

    @property
    def reduction(self) -> int:
        """Products summed into one output."""
        return self.kernel[0] * self.kernel[1] * self.in_channels // self.groups

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return self.out_height * self.out_width * self.out_channels * self.reduction

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads exactly its own input pixel."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)


@dataclass(frozen=True)
class Schedule:
    """How a convolution is cut: accumulators per tile, and tasks per image."""

    pixels: int
    vectors: int
    row_tasks: int
    channel_tasks: int


VECTOR_REGISTERS = 32
"""A tile's accumulators, one weight vector a column and one activation must fit, or LLVM spills."""


def choose_schedule(shape: Conv2dShape, dot: DotProduct, threads: int, staged: bool) -> Schedule:
    """Returns the schedule of least estimated cycles for one image on `threads` cores.

    The model counts, per reduction step of a tile, the greater of multiply and load issue (two a cycle) and the
    accumulation latency, plus the epilogue and the copying of staged rows; tasks run in rounds of `threads`.
    """
    group_vectors = ceil_div(shape.out_channels // shape.groups, LANES)
    rows, width = (shape.out_height, shape.out_width)
    steps = shape.kernel[0] * shape.kernel[1] * ceil_div(shape.in_channels // shape.groups, dot.k_step)
    row_bytes = shape.in_width * shape.in_channels

    def tile_cycles(pixels: int, vectors: int) -> float:
        issue = max(pixels * vectors / 2, (pixels + vectors) / 2, 4.0)
        return steps * issue + 5 * pixels * vectors + 12

    def width_cycles(pixels: int, vectors: int, count: int) -> float:
        rest = tile_cycles(count % pixels, vectors) if count % pixels else 0.0
        return count // pixels * tile_cycles(pixels, vectors) + rest

    best: tuple[float, Schedule] | None = None
    for vectors in range(1, min(group_vectors, 6) + 1):
        for pixels in range(1, min((VECTOR_REGISTERS - 1 - vectors) // vectors, max(width, 1)) + 1):
            if dot.k_step == 1 and pixels * vectors > 16:
                continue
            blocks = [min(vectors, group_vectors - v) for v in range(0, group_vectors, vectors)]
            for channel_tasks in {1, min(threads, len(blocks)), min(2 * threads, len(blocks))}:
                for row_tasks in {1, min(threads, rows), min(2 * threads, rows), min(4 * threads, rows)}:
                    task_rows, task_blocks = ceil_div(rows, row_tasks), ceil_div(len(blocks), channel_tasks)
                    block_cycles = max(width_cycles(pixels, b, width) for b in blocks)
                    cycles = task_rows * task_blocks * block_cycles * shape.groups + 500
                    if staged:
                        cycles += ((task_rows - 1) * shape.stride[0] + shape.kernel[0]) * row_bytes / 16
                    total = cycles * ceil_div(row_tasks * channel_tasks, threads)
                    if best is None or total < best[0]:
                        best = (total, Schedule(pixels, vectors, row_tasks, channel_tasks))
    assert best is not None
    return best[1]


def conv2d(
    shape: Conv2dShape,
    weight: np.ndarray,
    input_zero_point: int,
    requantization: Requantization,
    dot: DotProduct,
    *,
    threads: int = 2,
    schedule: Schedule | None = None,
    x_dtype: str = "uint8",
) -> Kernel:
    """Returns an exact quantized convolution: (n, H, W, C) integers -> (n, OH, OW, O) integers.

    Args:
        shape: geometry.
        weight: (O, KH, KW, I/groups) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: what padding stands for.
        requantization: rule and per-channel vectors.
        dot: how products are accumulated; k_step 1 where x or weight is not u8 x i8.
        threads: cores to cut the work for.
        schedule: register blocking; chosen by a cost model by default.
        x_dtype: uint8 or int8.

    Exactness: acc = sum (x - zx) * w in int32, by starting at -zx * sum(w); then `numerics.requantize`.
    """
    out_dtype = requantization.output.dtype
    original = shape
    if shape.is_pointwise and shape.in_height * shape.in_width > 1:
        shape = _flatten_pixels(shape)
    staged = any(shape.padding) or (shape.in_channels // shape.groups) % dot.k_step != 0
    if shape.out_height * shape.out_width == 1 and shape.is_pointwise and shape.groups == 1 and not staged:
        return linear(
            shape.in_channels, weight[:, 0, 0, :], input_zero_point, requantization, dot,
            threads=threads, x_dtype=x_dtype, spatial=True,
        )  # fmt: skip
    if schedule is None:
        schedule = choose_schedule(_rows_for_schedule(shape), dot, threads, staged)
    if shape is not original:
        shape = _fold_pixels(shape, schedule)
    emitter = _ConvEmitter(shape, weight, input_zero_point, requantization, dot, schedule, x_dtype, staged)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, original.in_height, original.in_width, original.in_channels), x_dtype)
        emitter.declare()
        y = argument("y", (n, original.out_height, original.out_width, original.out_channels), out_dtype)
        emitter.emit(
            n,
            flat(x, n * original.in_height * original.in_width * original.in_channels),
            flat(y, n * original.out_height * original.out_width * original.out_channels),
        )
    return Kernel(f"conv2d_u8i8acc32_{dot.name}", builder.get(), emitter.constants, original.macs)


def _flatten_pixels(shape: Conv2dShape) -> Conv2dShape:
    """A pointwise convolution is a matrix product over all pixels: one row of H*W."""
    return replace(shape, in_height=1, in_width=shape.in_height * shape.in_width)


def _rows_for_schedule(shape: Conv2dShape) -> Conv2dShape:
    """Lets the cost model cut a flattened row into as many pieces as it likes."""
    if shape.is_pointwise and shape.in_height == 1 and shape.in_width >= 2 * LANES:
        for rows in (8, 7, 6, 5, 4, 3, 2):
            if shape.in_width % rows == 0:
                return replace(shape, in_height=rows, in_width=shape.in_width // rows)
    return shape


def _fold_pixels(shape: Conv2dShape, schedule: Schedule) -> Conv2dShape:
    """Folds H*W pixels into `row_tasks` equal rows where they divide."""
    rows = math.gcd(schedule.row_tasks, shape.in_width)
    return replace(shape, in_height=rows, in_width=shape.in_width // rows)


class _ConvEmitter:
    """Emits the loops of one convolution into the open PrimFunc."""

    def __init__(
        self, shape: Conv2dShape, weight: np.ndarray, input_zero_point: int, requantization: Requantization,
        dot: DotProduct, schedule: Schedule, x_dtype: str, staged: bool,
    ) -> None:  # fmt: skip
        self.shape, self.dot, self.schedule, self.x_dtype, self.staged = shape, dot, schedule, x_dtype, staged
        self.out_dtype = requantization.output.dtype
        self.zero_point = input_zero_point
        self.group_in = shape.in_channels // shape.groups
        self.group_out = shape.out_channels // shape.groups
        self.group_vectors = ceil_div(self.group_out, LANES)
        padded = self.group_vectors * LANES * shape.groups
        packed = [dot.pack(w) for w in np.split(weight, shape.groups)]
        self.packed = np.concatenate(packed)
        start = np.zeros((shape.groups, self.group_vectors * LANES), np.int32)
        sums = weight.reshape(shape.groups, self.group_out, -1).astype(np.int64).sum(2)
        start[:, : self.group_out] = -input_zero_point * sums
        self.start = start.reshape(-1)
        spread = _spread_channels(requantization, shape.groups, self.group_vectors * LANES)
        self.epilogue = RequantizeEpilogue(
            spread, padded, shape.reduction * 255 * int(np.abs(weight.astype(int)).max())
        )
        self.constants = (self.packed, self.start, *self.epilogue.constants)
        self.steps = self.packed.shape[3]
        self.scratch_channels = (
            ceil_div(self.group_in, dot.k_step) * dot.k_step if shape.groups == 1 else shape.in_channels
        )

    def declare(self) -> None:
        self.w = argument("w", self.packed.shape, str(self.packed.dtype))
        self.acc_start = argument("acc_start", self.start.shape, "int32")
        self.epilogue.declare()

    def emit(self, n: Expr, x: Buffer, y: Buffer) -> None:
        shape, schedule = self.shape, self.schedule
        blocks = ceil_div(self.group_vectors, schedule.vectors)
        channel_tasks = min(schedule.channel_tasks, blocks)
        task_blocks = ceil_div(blocks, channel_tasks)
        channel_tasks = ceil_div(blocks, task_blocks)
        task_rows = ceil_div(shape.out_height, min(schedule.row_tasks, shape.out_height))
        row_tasks = ceil_div(shape.out_height, task_rows)
        with T.parallel(0, n * (row_tasks * channel_tasks)) as task:
            image = task // (row_tasks * channel_tasks)
            row_task = task // channel_tasks % row_tasks
            channel_task = task % channel_tasks
            first_row = row_task * task_rows
            rows = tirx.min(task_rows, shape.out_height - first_row) if shape.out_height % task_rows else task_rows
            source = (
                self._stage(x, image, first_row, rows, task_rows) if self.staged else self._direct(x, image, first_row)
            )
            target = (y, image * (shape.out_height * shape.out_width * shape.out_channels))
            with T.serial(0, shape.groups) as group:
                self._channel_blocks(
                    source, target, group, channel_task * task_blocks, task_blocks, blocks, first_row, rows
                )

    # ---- where activations are read from: (buffer, offset of window origin row 0, row stride, pixel stride)

    def _direct(self, x: Buffer, image: Expr, first_row: Expr) -> tuple[Buffer, Expr, int, int]:
        shape = self.shape
        row_stride = shape.in_width * shape.in_channels
        offset = (image * shape.in_height + first_row * shape.stride[0]) * row_stride
        return x, offset, row_stride, shape.in_channels

    def _stage(
        self, x: Buffer, image: Expr, first_row: Expr, rows: Expr, task_rows: int
    ) -> tuple[Buffer, Expr, int, int]:
        channels = self.scratch_channels
        scratch, row_stride = stage_rows(
            self.shape, x, image, first_row, rows, task_rows, self.zero_point, self.x_dtype, channels
        )
        return scratch, tirx.const(0, "int32"), row_stride, channels

    # ---- loops over output channels, rows and tiles

    def _channel_blocks(
        self, source: tuple[Buffer, Expr, int, int], target: tuple[Buffer, Expr], group: Expr, first_block: Expr,
        task_blocks: int, blocks: int, first_row: Expr, rows: Expr,
    ) -> None:  # fmt: skip
        vectors, ragged = self.schedule.vectors, self.group_out % LANES
        last_vectors = self.group_vectors - (blocks - 1) * vectors
        # the last block may hold fewer vectors, and its last vector fewer channels
        uniform = last_vectors == vectors and not ragged
        with T.serial(0, task_blocks) as step:
            block = first_block + step

            def body(count: int, last_lanes: int) -> None:
                self._rows(source, target, group, block * vectors, count, last_lanes, first_row, rows)

            if uniform and blocks % task_blocks == 0:
                body(vectors, LANES)
            else:
                if blocks > 1:
                    with T.If(block < (blocks if uniform else blocks - 1)), T.Then():
                        body(vectors, LANES)
                if not uniform:
                    with T.If(block == blocks - 1), T.Then():
                        body(last_vectors, ragged or LANES)

    def _rows(
        self, source: tuple[Buffer, Expr, int, int], target: tuple[Buffer, Expr], group: Expr, vector: Expr, count: int,
        last_lanes: int, first_row: Expr, rows: Expr,
    ) -> None:  # fmt: skip
        shape, pixels = self.shape, self.schedule.pixels
        x, offset, row_stride, pixel_stride = source
        y, y_offset = target
        with T.serial(0, rows) as row:
            in_base = offset + row * (shape.stride[0] * row_stride) + group * self.group_in
            out_base = y_offset + (first_row + row) * (shape.out_width * shape.out_channels) + group * self.group_out

            def tile(column: Expr, width: int) -> None:
                at = in_base + column * (shape.stride[1] * pixel_stride)
                acc = self._accumulate(x, at, row_stride, pixel_stride, group, vector, width, count)
                self._write(y, out_base + column * shape.out_channels, acc, group, vector, width, count, last_lanes)

            if shape.out_width >= pixels:
                with T.serial(0, shape.out_width // pixels) as column_block:
                    tile(column_block * pixels, pixels)
            if shape.out_width % pixels:
                tile(tirx.const(shape.out_width // pixels * pixels, "int32"), shape.out_width % pixels)

    def _accumulate(
        self, x: Buffer, at: Expr, row_stride: int, pixel_stride: int, group: Expr, vector: Expr, width: int, count: int
    ) -> list[Buffer]:
        """Emits the reduction of one tile; accumulator i*count+j holds pixel i, output vector j."""
        shape, dot = self.shape, self.dot
        # One buffer a vector: TVM moves a larger one off the stack, and LLVM then keeps it in memory.
        acc = [local(LANES, "int32") for _ in range(width * count)]
        packed_vector = group * self.group_vectors + vector
        for j in range(count):
            for i in range(width):
                start = self.acc_start[ramp((packed_vector + j) * LANES)]
                T.buffer_store(acc[i * count + j], start, [ramp(0)])
        with T.serial(0, shape.kernel[0]) as kh, T.serial(0, shape.kernel[1]) as kw, T.serial(0, self.steps) as step:
            tap = (
                at + kh * (shape.dilation[0] * row_stride) + kw * (shape.dilation[1] * pixel_stride) + step * dot.k_step
            )
            for i in range(width):
                activation = dot.load_x(x, tap + i * (shape.stride[1] * pixel_stride))
                for j in range(count):
                    weights = self.w[packed_vector + j, kh, kw, step, ramp(0, dot.weight_bytes)]
                    total = acc[i * count + j]
                    T.buffer_store(total, dot.accumulate(total[ramp(0)], activation, weights), [ramp(0)])
        return acc

    def _write(
        self, y: Buffer, at: Expr, acc: list[Buffer], group: Expr, vector: Expr, width: int, count: int, last_lanes: int
    ) -> None:
        for i in range(width):
            for j in range(count):
                channel = (group * self.group_vectors + vector + j) * LANES
                value = self.epilogue.apply(acc[i * count + j][ramp(0)], channel)
                lanes = last_lanes if j == count - 1 else LANES
                start = at + i * self.shape.out_channels + (vector + j) * LANES
                store_prefix(y, [], start, cast(value, self.out_dtype), lanes, self.out_dtype)


def _spread_channels(r: Requantization, groups: int, group_padded: int) -> Requantization:
    """Returns `r` with each group's channels padded to whole vectors."""

    def spread(vector: np.ndarray | None) -> np.ndarray | None:
        if vector is None or groups == 1:
            return vector
        out = np.zeros((groups, group_padded), vector.dtype)
        out[:, : vector.size // groups] = vector.reshape(groups, -1)
        return out.reshape(-1)

    multiplier = spread(r.multiplier_f32)
    assert multiplier is not None
    return replace(r, multiplier_f32=multiplier, bias_f32=spread(r.bias_f32), bias_i32=spread(r.bias_i32))


def linear(
    in_features: int,
    weight: np.ndarray,
    input_zero_point: int,
    requantization: Requantization,
    dot: DotProduct,
    *,
    threads: int = 2,
    x_dtype: str = "uint8",
    spatial: bool = False,
) -> Kernel:
    """Returns an exact quantized matrix product: (n, K) integers -> (n, O) integers.

    Args:
        in_features: K.
        weight: (O, K) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: zero point of x.
        requantization: rule and per-channel vectors.
        dot: how products are accumulated.
        threads: cores to cut the work for.
        x_dtype: uint8 or int8.
        spatial: whether tensors are (n, 1, 1, K) and (n, 1, 1, O).
    """
    out_features = weight.shape[0]
    shape = Conv2dShape(1, 1, in_features, out_features)
    staged = in_features % dot.k_step != 0
    vectors = ceil_div(out_features, LANES)
    width = max(d for d in (4, 3, 2, 1) if vectors % d == 0 and vectors // d >= min(threads, vectors))
    schedule = Schedule(6, width, 1, vectors // width)
    weight_ohwi = weight[:, None, None, :]
    emitter = _LinearEmitter(shape, weight_ohwi, input_zero_point, requantization, dot, schedule, x_dtype, staged)
    unit = (1, 1) if spatial else ()
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *unit, in_features), x_dtype)
        emitter.declare()
        y = argument("y", (n, *unit, out_features), requantization.output.dtype)
        emitter.emit_rows(n, flat(x, n * in_features), flat(y, n * out_features))
    return Kernel(f"linear_u8i8acc32_{dot.name}", builder.get(), emitter.constants, shape.macs)


class _LinearEmitter(_ConvEmitter):
    """The pixels of a matrix product are the images of the batch."""

    def emit_rows(self, n: Expr, x: Buffer, y: Buffer) -> None:
        vectors, pixels = self.schedule.vectors, self.schedule.pixels
        blocks = self.group_vectors // vectors
        ragged = self.shape.out_channels % LANES

        def rows(source: Buffer, stride: int, block: Expr, last_lanes: int) -> None:
            def tile(row: Expr, width: int) -> None:
                acc = self._accumulate(
                    source, row * stride, 0, stride, tirx.const(0, "int32"), block * vectors, width, vectors
                )
                at = row * self.shape.out_channels
                self._write(y, at, acc, tirx.const(0, "int32"), block * vectors, width, vectors, last_lanes)

            with T.serial(0, n // pixels) as row_block:
                tile(row_block * pixels, pixels)
            with T.serial(0, n % pixels) as row:
                tile(n // pixels * pixels + row, 1)

        with T.parallel(0, blocks) as block:
            source, stride = x, self.shape.in_channels
            if self.staged:
                stride = self.scratch_channels
                source = T.alloc_buffer((n * stride,), self.x_dtype)
                with T.serial(0, n) as row:
                    channels = self.shape.in_channels
                    copy_flat(source, row * stride, x, row * channels, channels)
                    for c in range(channels, stride):
                        T.buffer_store(source, tirx.const(0, self.x_dtype), [row * stride + c])
            if not ragged:
                rows(source, stride, block, LANES)
            elif blocks == 1:
                rows(source, stride, block, ragged)
            else:
                with T.If(block < blocks - 1):
                    with T.Then():
                        rows(source, stride, block, LANES)
                    with T.Else():
                        rows(source, stride, block, ragged)
