"""Dense and grouped int8 convolution and matrix product, NHWC, with the requantization fused into the epilogue.

Register blocking: a tile holds `pixels x vectors` accumulators of LANES output channels each; one step of the reduction
loads `vectors` weight vectors and splats `pixels` activation words. Where a window can leave the image, or channels do
not fill the dot product's step, each task first copies its rows into a padded scratch that holds the zero point there.
Depthwise convolutions are in depthwise.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.numerics import Requantization
from quantvm.qdq_numerics import FloatProgram

from .builder import (
    LANES,
    Buffer,
    Expr,
    Kernel,
    argument,
    ceil_div,
    flat,
    local,
    prefetch,
    prim_func,
    ramp,
    symbolic_batch,
)
from .dot import DotProduct
from .epilogue import NO_POST_OPS, Piece, PostOps
from .isa import PLAIN, Isa
from .program_epilogue import epilogue_of, spread_channels
from .schedule import Conv2dShape, Schedule, choose_schedule
from .staging import copy_flat, stage_rows, stage_windows


def conv2d(
    shape: Conv2dShape,
    weight: np.ndarray,
    input_zero_point: int,
    requantization: Requantization | FloatProgram,
    dot: DotProduct,
    *,
    threads: int = 2,
    schedule: Schedule | None = None,
    x_dtype: str = "uint8",
    isa: Isa = PLAIN,
    post: PostOps = NO_POST_OPS,
    weight_zero_points: np.ndarray | None = None,
    pairs_cross_taps: bool = False,
) -> Kernel:
    """Returns an exact quantized convolution: (n, H, W, C) integers -> (n, OH, OW, O) integers.

    With `post.residual` the kernel takes the tensor to add, of the output's shape, after x.

    Args:
        shape: geometry.
        weight: (O, KH, KW, I/groups) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: what padding stands for.
        requantization: rule and per-channel vectors; or a float program, whose tensors follow x.
        dot: how products are accumulated; k_step 1 where x or weight is not u8 x i8.
        threads: cores to cut the work for.
        schedule: register blocking; chosen by a cost model by default.
        x_dtype: uint8 or int8.
        isa: instruction groups that may be used.
        post: operators fused behind the requantization.
        weight_zero_points: (O,) integers, int8 weights then being as stored; only where `dot.saturates`.
        pairs_cross_taps: where `dot.saturates`, whether products are paired along the whole window (FBGEMM) and not
            along the channels of each tap (oneDNN), which differs where the channels of a group are odd.

    Exactness: acc = sum (x - zx) * w in int32, by starting at -zx * sum(w); then `numerics.requantize`, or
        `qdq_numerics.evaluate`. Where `dot.saturates`, sum x * w is a sum of pairs of raw products, each saturated at
        int16, in the order (row, column, channel) of the window.
    """
    original = shape
    windows = None
    if dot.saturates and pairs_cross_taps and (shape.in_channels // shape.groups) % 2 and shape.kernel != (1, 1):
        windows, shape, schedule = shape, shape.as_windows(dot.k_step), None
        weight = weight.reshape(shape.out_channels, 1, 1, -1)
    else:
        shape = shape.merged()
    staged = windows is not None or shape.is_staged(dot)
    if shape.out_height * shape.out_width == 1 and shape.is_pointwise and shape.groups == 1 and not staged:
        return linear(
            shape.in_channels, weight[:, 0, 0, :], input_zero_point, requantization, dot,
            threads=threads, x_dtype=x_dtype, spatial=True, isa=isa, post=post, weight_zero_points=weight_zero_points,
        )  # fmt: skip
    if schedule is None:
        schedule = choose_schedule(shape, dot, threads)
    emitter = _ConvEmitter(
        shape, weight, input_zero_point, requantization, dot, schedule, x_dtype, staged, isa, post,
        weight_zero_points, windows,
    )  # fmt: skip
    out_shape = (original.out_height, original.out_width, original.out_channels)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        out_numel = n * math.prod(out_shape)
        x = argument("x", (n, original.in_height, original.in_width, original.in_channels), x_dtype)
        emitter.epilogue.declare_residual((n, *out_shape))
        emitter.declare(n)
        y = argument("y", (n, *out_shape), emitter.epilogue.out_dtype)
        emitter.epilogue.view_residual(out_numel)
        emitter.emit(n, flat(x, n * original.in_height * original.in_width * original.in_channels), flat(y, out_numel))
    return Kernel(f"conv2d_u8i8acc32_{dot.name}{post.suffix}", builder.get(), emitter.constants, original.macs)


@dataclass(frozen=True)
class _Span:
    """The output pixels of one task: rows, and of each row a range of tiles; `last` guards the narrower last tile."""

    first_row: Expr
    rows: Expr
    first_tile: Expr
    tiles: Expr
    last: Expr | None


@dataclass(frozen=True)
class _Source:
    """Where activations are read from: a flat buffer, the offset of the task's first window, and strides."""

    buffer: Buffer
    offset: Expr
    row_stride: int
    pixel_stride: int


_COLD_BYTES = 32 << 10
"""Weights of this size or more come from outside of the first-level cache when a kernel begins."""


@dataclass(frozen=True)
class _Ahead:
    """Lines of weights to fetch: one of each of `vectors` packed vectors a step, from byte `offset`."""

    offset: Expr
    vectors: int
    vector_bytes: int
    stride: Expr


class _ConvEmitter:
    """Emits the loops of one convolution into the open PrimFunc."""

    def __init__(
        self, shape: Conv2dShape, weight: np.ndarray, input_zero_point: int,
        requantization: Requantization | FloatProgram, dot: DotProduct, schedule: Schedule, x_dtype: str, staged: bool,
        isa: Isa, post: PostOps, weight_zero_points: np.ndarray | None = None, windows: Conv2dShape | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.dot, self.x_dtype, self.staged, self.windows = shape, dot, x_dtype, staged, windows
        self.schedule = schedule if windows is None else _few_rows(schedule, shape)
        self.zero_point = input_zero_point
        self.group_in = shape.in_channels // shape.groups
        self.group_out = shape.out_channels // shape.groups
        self.group_vectors = ceil_div(self.group_out, LANES)
        padded = self.group_vectors * LANES * shape.groups
        # A row of the window is one run of bytes, of which only the end is padded to whole steps, not every pixel.
        merged = staged and shape.groups == 1 and shape.dilation[1] == 1 and self.group_in % dot.k_step != 0
        if dot.saturates and self.group_in % 2:
            merged = False  # pairs would cross taps
        if merged:
            weight = weight.reshape(shape.out_channels, shape.kernel[0], 1, -1)
        self.window = (shape.kernel[0], 1) if merged else shape.kernel
        passes = [weight]
        sums = weight.reshape(shape.groups, self.group_out, -1).astype(np.int64).sum(2)
        if weight_zero_points is not None and weight_zero_points.any():
            passes += _zero_point_passes(weight, weight_zero_points)
            sums = sums - weight_zero_points.reshape(shape.groups, -1).astype(np.int64) * weight[0].size
        self.passes = len(passes)
        rows = np.concatenate([np.concatenate([dot.pack(w) for w in np.split(p, shape.groups)]) for p in passes], 1)
        self.packed = np.ascontiguousarray(rows)
        start = np.zeros((shape.groups, self.group_vectors * LANES), np.int32)
        start[:, : self.group_out] = -input_zero_point * sums
        self.start = start.reshape(-1)
        group_padded = self.group_vectors * LANES
        spread: Requantization | FloatProgram
        if isinstance(requantization, FloatProgram):
            spread = spread_channels(requantization, shape.groups, group_padded)
        else:
            spread = _spread_channels(requantization, shape.groups, group_padded)
        acc_bound = shape.reduction * 255 * int(sum(np.abs(p.astype(int)).max() for p in passes))
        self.epilogue = epilogue_of(spread, padded, acc_bound, isa, post)
        self.constants = (self.packed, self.start, *self.epilogue.constants)
        self.steps = self.packed.shape[3]
        whole_steps = shape.groups == 1 and not merged
        self.scratch_channels = ceil_div(self.group_in, dot.k_step) * dot.k_step if whole_steps else shape.in_channels

    def declare(self, n: Expr) -> None:
        self.w = argument("w", self.packed.shape, str(self.packed.dtype))
        self.acc_start = argument("acc_start", self.start.shape, "int32")
        self.epilogue.declare(n)

    def emit(self, n: Expr, x: Buffer, y: Buffer) -> None:
        shape, schedule = self.shape, self.schedule
        self.w_flat = flat(self.w, self.packed.size)
        blocks = ceil_div(self.group_vectors, schedule.vectors)
        task_blocks = ceil_div(blocks, min(schedule.channel_tasks, blocks))
        channel_tasks = ceil_div(blocks, task_blocks)
        pieces = self._row_tasks()
        with T.parallel(0, n * (pieces * channel_tasks)) as task:
            image = task // (pieces * channel_tasks)
            span, task_rows = self._span(task // channel_tasks % pieces, pieces)
            self.task_rows = task_rows
            first_block = task % channel_tasks * task_blocks
            source = self._stage(x, image, span, task_rows) if self.staged else self._direct(x, image, span)
            target = (y, image * (shape.out_height * shape.out_width * shape.out_channels))
            with T.serial(0, shape.groups) as group:
                self._channel_blocks(source, target, group, first_block, task_blocks, blocks, span)

    def _row_tasks(self) -> int:
        """Number of pieces of equal size, the last one perhaps smaller, of the rows, or of one row's tiles."""
        count = self._rows_to_cut()
        return ceil_div(count, ceil_div(count, min(self.schedule.row_tasks, count)))

    def _rows_to_cut(self) -> int:
        return (
            self.shape.out_height if self.shape.out_height > 1 else ceil_div(self.shape.out_width, self.schedule.pixels)
        )

    def _span(self, piece: Expr, pieces: int) -> tuple[_Span, int]:
        """Returns the pixels of a piece, and the greatest number of rows that a piece has."""
        shape, pixels = self.shape, self.schedule.pixels
        whole, has_rest = shape.out_width // pixels, shape.out_width % pixels != 0
        size = ceil_div(self._rows_to_cut(), pieces)
        first = piece * size
        if shape.out_height > 1:
            rows = tirx.min(size, shape.out_height - first) if shape.out_height % size else size
            return _Span(first, rows, 0, whole, None), size
        tiles = size if whole == pieces * size else tirx.max(tirx.min(size, whole - first), 0)
        last = piece == pieces - 1 if has_rest and pieces > 1 else None
        return _Span(0, 1, first, tiles, last), 1

    def _direct(self, x: Buffer, image: Expr, span: _Span) -> _Source:
        shape = self.shape
        row_stride = shape.in_width * shape.in_channels
        offset = (image * shape.in_height + span.first_row * shape.stride[0]) * row_stride
        return _Source(x, offset, row_stride, shape.in_channels)

    def _stage(self, x: Buffer, image: Expr, span: _Span, task_rows: int) -> _Source:
        channels = self.scratch_channels
        if self.windows is not None:
            run = channels // self.shape.groups
            scratch = stage_windows(
                self.windows, x, image, span.first_row, span.rows, task_rows, self.zero_point, self.x_dtype, run
            )
            return _Source(scratch, tirx.const(0, "int32"), self.shape.out_width * channels, channels)
        scratch, row_stride = stage_rows(
            self.shape, x, image, span.first_row, span.rows, task_rows, self.zero_point, self.x_dtype, channels
        )
        return _Source(scratch, tirx.const(0, "int32"), row_stride, channels)

    # ---- loops over output channels, rows and tiles

    def _channel_blocks(
        self, source: _Source, target: tuple[Buffer, Expr], group: Expr, first_block: Expr, task_blocks: int,
        blocks: int, span: _Span,
    ) -> None:  # fmt: skip
        vectors, ragged = self.schedule.vectors, self.group_out % LANES
        last_vectors = self.group_vectors - (blocks - 1) * vectors
        # the last block may hold fewer vectors, and its last vector fewer channels
        uniform = last_vectors == vectors and not ragged
        with T.serial(0, task_blocks) as step:
            block = first_block + step

            def body(count: int, last_lanes: int) -> None:
                self._rows(source, target, group, block * vectors, count, last_lanes, span)

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
        self, source: _Source, target: tuple[Buffer, Expr], group: Expr, vector: Expr, count: int, last_lanes: int,
        span: _Span,
    ) -> None:  # fmt: skip
        shape, pixels, tile_rows = self.shape, self.schedule.pixels, self.schedule.tile_rows
        y, y_offset = target
        rest = shape.out_width % pixels

        def tile(row: Expr, column: Expr, width: int, rows: int = 1) -> None:
            in_row = source.offset + row * (shape.stride[0] * source.row_stride) + group * self.group_in
            at = in_row + column * (shape.stride[1] * source.pixel_stride)
            tiles = ceil_div(shape.out_width, pixels)
            ahead = self._ahead(group, vector, count, row * tiles + column // pixels, tiles)
            acc = self._accumulate(source, at, group, vector, (rows, width), count, ahead)
            out_row = (span.first_row + row) * (shape.out_width * shape.out_channels)
            out = y_offset + out_row + group * self.group_out + column * shape.out_channels
            self._write(y, out, acc, group, vector, rows * width, count, last_lanes)

        first = 0
        if tile_rows > 1:
            with T.serial(0, span.rows // tile_rows) as step:
                tile(step * tile_rows, 0, pixels, tile_rows)
            first = span.rows // tile_rows * tile_rows
        with T.serial(0, span.rows - first) as step:
            row = first + step
            if shape.out_width >= pixels:
                with T.serial(0, span.tiles) as column:
                    tile(row, (span.first_tile + column) * pixels, pixels)
            if rest and span.last is None:
                tile(row, tirx.const(shape.out_width - rest, "int32"), rest)
            elif rest:
                with T.If(span.last), T.Then():
                    tile(row, tirx.const(shape.out_width - rest, "int32"), rest)

    def _ahead(self, group: Expr, vector: Expr, count: int, tile: Expr, row_tiles: int) -> _Ahead | None:
        """Returns which weights of the next block a tile should fetch, so that the block finds them in the cache.

        Each of the first tiles fetches one of the block's vectors, or several where there are few tiles.
        """
        vector_bytes = self.packed[0].nbytes
        if self.packed.nbytes < _COLD_BYTES or self.group_vectors <= count:
            return None
        each = ceil_div(count, row_tiles * self.task_rows)
        first = (group * self.group_vectors + vector + count + tile * each) * vector_bytes
        return _Ahead(first, each, vector_bytes, tirx.Select(tile * each < count, 64, 0))

    def _fetch(self, ahead: _Ahead, step: Expr) -> None:
        for i in range(ahead.vectors):
            line = T.address_of(self.w_flat[ahead.offset + i * ahead.vector_bytes + step * ahead.stride])
            prefetch(line)

    def _accumulate(
        self, source: _Source, at: Expr, group: Expr, vector: Expr, tile: tuple[int, int], count: int,
        ahead: _Ahead | None = None,
    ) -> list[Buffer]:  # fmt: skip
        """Emits the reduction of one tile of rows x columns; accumulator i*count+j holds pixel i, output vector j."""
        shape, dot = self.shape, self.dot
        pixels = [
            row * (shape.stride[0] * source.row_stride) + column * (shape.stride[1] * source.pixel_stride)
            for row in range(tile[0])
            for column in range(tile[1])
        ]
        width = len(pixels)
        # One buffer a vector: TVM moves a larger one off the stack, and LLVM then keeps it in memory.
        acc = [local(LANES, "int32") for _ in range(width * count)]
        packed_vector = group * self.group_vectors + vector
        for j in range(count):
            for i in range(width):
                for lane in range(0, LANES, dot.lanes):
                    start = self.acc_start[ramp((packed_vector + j) * LANES + lane, dot.lanes)]
                    T.buffer_store(acc[i * count + j], start, [ramp(lane, dot.lanes)])
        rows = self.passes * self.window[0]
        with T.serial(0, rows) as packed_row, T.serial(0, self.window[1]) as kw, T.serial(0, self.steps) as step:
            kh = packed_row if self.passes == 1 else packed_row % self.window[0]
            tap = (
                at
                + kh * (shape.dilation[0] * source.row_stride)
                + kw * (shape.dilation[1] * source.pixel_stride)
                + step * dot.k_step
            )
            if ahead is not None:
                self._fetch(ahead, (packed_row * self.window[1] + kw) * self.steps + step)
            for i, pixel in enumerate(pixels):
                activation = dot.load_x(source.buffer, tap + pixel)
                for j, lane in itertools.product(range(count), range(0, LANES, dot.lanes)):
                    weights = self.w[
                        packed_vector + j, packed_row, kw, step, ramp(lane * dot.k_step, dot.lanes * dot.k_step)
                    ]
                    total, lanes = acc[i * count + j], ramp(lane, dot.lanes)
                    T.buffer_store(total, dot.accumulate(total[lanes], activation, weights), [lanes])
        return acc

    def _write(
        self, y: Buffer, at: Expr, acc: list[Buffer], group: Expr, vector: Expr, width: int, count: int, last_lanes: int
    ) -> None:
        first = (group * self.group_vectors + vector) * LANES
        pieces = [
            Piece(
                acc[i * count + j][ramp(0)],
                first + j * LANES,
                i * self.shape.out_channels + j * LANES,
                last_lanes if j == count - 1 else LANES,
            )
            for i in range(width)
            for j in range(count)
        ]
        self.epilogue.store(y, at + vector * LANES, pieces)


_STAGED_BYTES = 128 << 10
"""Bytes of staged windows that a task may have, to find them in the second-level cache."""


def _few_rows(schedule: Schedule, shape: Conv2dShape) -> Schedule:
    """Returns the schedule cut into so many tasks that their staged windows are not too large."""
    rows = max(1, _STAGED_BYTES // (shape.in_width * shape.in_channels))
    return replace(schedule, row_tasks=max(schedule.row_tasks, ceil_div(shape.out_height, rows)), channel_tasks=1)


def _zero_point_passes(weight: np.ndarray, zero_points: np.ndarray) -> list[np.ndarray]:
    """Returns weights whose products are -zw * x of the even channels and of the odd ones: alone, no pair saturates."""
    minus = np.broadcast_to(-zero_points.astype(np.int16).reshape(-1, 1, 1, 1), weight.shape).astype(np.int8)
    is_even = np.arange(weight.shape[3]) % 2 == 0
    return [np.where(is_even, minus, 0).astype(np.int8), np.where(is_even, 0, minus).astype(np.int8)]


def _spread_channels(r: Requantization, groups: int, group_padded: int) -> Requantization:
    """Returns `r` with each group's channels padded to whole vectors."""

    def spread(vector: np.ndarray | None) -> np.ndarray | None:
        if vector is None or groups == 1:
            return vector
        out = np.zeros((groups, group_padded), vector.dtype)
        out[:, : vector.size // groups] = vector.reshape(groups, -1)
        return out.reshape(-1)

    multiplier, fixed = spread(r.multiplier_f32), r.fixed
    assert multiplier is not None
    if fixed is not None:
        fixed = replace(fixed, multiplier=spread(fixed.multiplier), shift=spread(fixed.shift))  # type: ignore[arg-type]
    return replace(
        r, multiplier_f32=multiplier, bias_f32=spread(r.bias_f32), bias_i32=spread(r.bias_i32), fixed=fixed,
        combined_f32=spread(r.combined_f32),
    )  # fmt: skip


def linear(
    in_features: int,
    weight: np.ndarray,
    input_zero_point: int,
    requantization: Requantization | FloatProgram,
    dot: DotProduct,
    *,
    threads: int = 2,
    x_dtype: str = "uint8",
    spatial: bool = False,
    isa: Isa = PLAIN,
    post: PostOps = NO_POST_OPS,
    weight_zero_points: np.ndarray | None = None,
) -> Kernel:
    """Returns an exact quantized matrix product: (n, K) integers -> (n, O) integers.

    Args:
        in_features: K.
        weight: (O, K) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: zero point of x.
        requantization: rule and per-channel vectors; or a float program, whose tensors follow x.
        dot: how products are accumulated.
        threads: cores to cut the work for.
        x_dtype: uint8 or int8.
        spatial: whether tensors are (n, 1, 1, K) and (n, 1, 1, O).
        isa: instruction groups that may be used.
        post: operators fused behind the requantization.
        weight_zero_points: as in `conv2d`.
    """
    out_features = weight.shape[0]
    shape = Conv2dShape(1, 1, in_features, out_features)
    staged = in_features % dot.k_step != 0
    vectors = ceil_div(out_features, LANES)
    width = max(d for d in (4, 3, 2, 1) if vectors % d == 0 and vectors // d >= min(threads, vectors))
    schedule = Schedule(max(1, min(6, dot.greatest_pixels(width))), width, 1, vectors // width)
    weight_ohwi = weight[:, None, None, :]
    emitter = _LinearEmitter(
        shape, weight_ohwi, input_zero_point, requantization, dot, schedule, x_dtype, staged, isa, post,
        weight_zero_points,
    )  # fmt: skip
    unit = (1, 1) if spatial else ()
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *unit, in_features), x_dtype)
        emitter.epilogue.declare_residual((n, *unit, out_features))
        emitter.declare(n)
        y = argument("y", (n, *unit, out_features), emitter.epilogue.out_dtype)
        emitter.epilogue.view_residual(n * out_features)
        emitter.emit_rows(n, flat(x, n * in_features), flat(y, n * out_features))
    return Kernel(f"linear_u8i8acc32_{dot.name}{post.suffix}", builder.get(), emitter.constants, shape.macs)


class _LinearEmitter(_ConvEmitter):
    """The pixels of a matrix product are the images of the batch."""

    def emit_rows(self, n: Expr, x: Buffer, y: Buffer) -> None:
        vectors, pixels = self.schedule.vectors, self.schedule.pixels
        blocks = self.group_vectors // vectors
        ragged = self.shape.out_channels % LANES

        def rows(source: Buffer, stride: int, block: Expr, last_lanes: int) -> None:
            def tile(row: Expr, width: int) -> None:
                acc = self._accumulate(
                    _Source(source, 0, 0, stride),
                    row * stride,
                    tirx.const(0, "int32"),
                    block * vectors,
                    (1, width),
                    vectors,
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
                # the last step of a row reads a few bytes of what follows, and multiplies them with zero
                source = T.alloc_buffer((n * stride + LANES,), self.x_dtype)
                with T.serial(0, n) as row:
                    copy_flat(source, row * stride, x, row * stride, stride)
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
