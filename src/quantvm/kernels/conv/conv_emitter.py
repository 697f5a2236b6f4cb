"""Emits the loops of a dense or grouped int8 convolution.

Register blocking: a tile holds `pixels x vectors` accumulators of LANES output channels each; one step of the reduction
loads `vectors` weight vectors and splats `pixels` activation words. If windows can leave the image, or channels do not
fill the dot product's step, each task first copies its rows into a scratch padded with the zero point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.builder import LANES, Buffer, Expr, argument, ceil_div, flat, local, prefetch, ramp
from quantvm.kernels.isa import Isa
from quantvm.kernels.schedule.schedule import Conv2dShape, Schedule
from quantvm.kernels.staging import stage_rows, stage_windows
from quantvm.numerics.qdq import FloatProgram
from quantvm.numerics.requantization import Requantization

from .dot import DotProduct
from .epilogue import Piece, PostOps
from .packing import pack_weight, spread_requantization, start_without_padding
from .program_epilogue import OutputStage, epilogue_of, spread_channels


@dataclass(frozen=True)
class _Span:
    """The output pixels of one task: rows, and a range of tiles in each; `last` guards the narrower last tile."""

    first_row: Expr
    rows: Expr
    first_tile: Expr
    tiles: Expr
    last: Expr | None


@dataclass(frozen=True)
class Source:
    """The activations to read: a flat buffer, the offset of the task's first window, and strides."""

    buffer: Buffer
    offset: Expr
    row_stride: int
    pixel_stride: int


_COLD_BYTES = 32 << 10
"""Weights of at least this size are assumed to be outside of the first-level cache when a kernel begins."""


@dataclass(frozen=True)
class _Prefetch:
    """Weights to prefetch from byte `offset`: in each step, one cache line of each of `vectors` packed vectors."""

    offset: Expr
    vectors: int
    vector_bytes: int
    stride: Expr


class ConvEmitter:
    """Emits the loops of one convolution into the open PrimFunc.

    Args:
        shape: geometry, as it is scheduled.
        weight: (O, KH, KW, I/groups) int8 or int16.
        input_zero_point: zero point of x and value of the padding.
        output_stage: formula and per-channel vectors; or a float program.
        dot: how products are accumulated.
        schedule: register blocking.
        x_dtype: uint8 or int8.
        staged: whether input is copied to a scratch before it is read.
        isa: instruction groups that may be used.
        post: operators fused behind the output stage.
        weight_zero_points: (O,), if they are not subtracted from the weight.
        skips_padding: whether taps in the padding are left out, so that they do not saturate in pairs.
        windows: geometry of the original convolution, if the pixels of `shape` are its windows as runs of bytes.
    """

    def __init__(
        self, shape: Conv2dShape, weight: np.ndarray, input_zero_point: int,
        output_stage: OutputStage, dot: DotProduct, schedule: Schedule, x_dtype: str, staged: bool,
        isa: Isa, post: PostOps, weight_zero_points: np.ndarray | None = None, windows: Conv2dShape | None = None,
        *, skips_padding: bool = False,
    ) -> None:  # fmt: skip
        self.shape, self.dot, self.schedule, self.x_dtype = shape, dot, schedule, x_dtype
        self.staged, self.windows = staged, windows
        self.zero_point = 0 if skips_padding else input_zero_point
        self.skips_padding = skips_padding
        self.group_in = shape.in_channels // shape.groups
        self.group_out = shape.out_channels // shape.groups
        self.group_vectors = ceil_div(self.group_out, LANES)
        padded = self.group_vectors * LANES * shape.groups
        merged = staged and shape.groups == 1 and shape.dilation[1] == 1 and self.group_in % dot.k_step != 0
        if dot.saturates and self.group_in % 2:
            merged = False  # pairs would cross taps
        self.packed = pack_weight(shape, weight, input_zero_point, dot, merged=merged, zero_points=weight_zero_points)
        if skips_padding:
            start = start_without_padding(shape, weight, weight_zero_points, input_zero_point)
            self.packed = replace(self.packed, start=start.reshape(-1))
        group_padded = self.group_vectors * LANES
        spread: Requantization | FloatProgram
        if isinstance(output_stage, FloatProgram):
            spread = spread_channels(output_stage, shape.groups, group_padded)
        else:
            spread = spread_requantization(output_stage, shape.groups, group_padded)
        acc_bound = shape.reduction * 255 * self.packed.largest
        self.epilogue = epilogue_of(spread, padded, acc_bound, isa, post)
        excess = self.packed.excess
        split = () if excess is None else (excess.weight, excess.steps, excess.first)
        self.constants = (self.packed.weight, self.packed.start, *split, *self.epilogue.constants)
        self.steps = self.packed.weight.shape[3]
        whole_steps = shape.groups == 1 and not merged
        self.scratch_channels = ceil_div(self.group_in, dot.k_step) * dot.k_step if whole_steps else shape.in_channels

    def declare(self, n: Expr) -> None:
        """Adds the constants to the open PrimFunc's arguments; `n`: images."""
        self.w = argument("w", self.packed.weight.shape, str(self.packed.weight.dtype))
        self.acc_start = argument("acc_start", self.packed.start.shape, "int32")
        excess = self.packed.excess
        if excess is not None:
            entries = tirx.Var("entries", "int64")  # dynamic, so that convolutions of one shape share code
            self.excess_w = argument("excess_w", (entries, excess.weight.shape[1]), "int16")
            self.excess_steps = argument("excess_steps", (entries, 3), "int32")
            self.excess_first = argument("excess_first", excess.first.shape, "int32")
        self.epilogue.declare(n)

    def emit(self, n: Expr, x: Buffer, y: Buffer) -> None:
        """Emits the loops over `n` images from flat x to flat y."""
        shape, schedule = self.shape, self.schedule
        self.w_flat = flat(self.w, self.packed.weight.size)
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
        """Number of pieces into which the rows, or the tiles of the only row, are cut; the last may be smaller."""
        count = self._rows_to_cut()
        return ceil_div(count, ceil_div(count, min(self.schedule.row_tasks, count)))

    def _rows_to_cut(self) -> int:
        return (
            self.shape.out_height if self.shape.out_height > 1 else ceil_div(self.shape.out_width, self.schedule.pixels)
        )

    def _span(self, piece: Expr, pieces: int) -> tuple[_Span, int]:
        """Returns the pixels of a piece, and the greatest number of rows of any piece."""
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

    def _direct(self, x: Buffer, image: Expr, span: _Span) -> Source:
        shape = self.shape
        row_stride = shape.in_width * shape.in_channels
        offset = (image * shape.in_height + span.first_row * shape.stride[0]) * row_stride
        return Source(x, offset, row_stride, shape.in_channels)

    def _stage(self, x: Buffer, image: Expr, span: _Span, task_rows: int) -> Source:
        channels = self.scratch_channels
        if self.windows is not None:
            run = channels // self.shape.groups
            scratch = stage_windows(
                self.windows, x, image, span.first_row, span.rows, task_rows, self.zero_point, self.x_dtype, run
            )
            return Source(scratch, tirx.const(0, "int32"), self.shape.out_width * channels, channels)
        scratch, row_stride = stage_rows(
            self.shape, x, image, span.first_row, span.rows, task_rows, self.zero_point, self.x_dtype, channels
        )
        return Source(scratch, tirx.const(0, "int32"), row_stride, channels)

    # ---- loops over output channels, rows and tiles

    def _channel_blocks(
        self, source: Source, target: tuple[Buffer, Expr], group: Expr, first_block: Expr, task_blocks: int,
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
        self, source: Source, target: tuple[Buffer, Expr], group: Expr, vector: Expr, count: int, last_lanes: int,
        span: _Span,
    ) -> None:  # fmt: skip
        shape, pixels, tile_rows = self.shape, self.schedule.pixels, self.schedule.tile_rows
        y, y_offset = target
        rest = shape.out_width % pixels

        def tile(row: Expr, column: Expr, width: int, rows: int = 1) -> None:
            in_row = source.offset + row * (shape.stride[0] * source.row_stride) + group * self.group_in
            at = in_row + column * (shape.stride[1] * source.pixel_stride)
            tiles = ceil_div(shape.out_width, pixels)
            ahead = self._weights_to_prefetch(group, vector, count, row * tiles + column // pixels, tiles)
            start = None
            if self.skips_padding:
                start = ((span.first_row + row) * shape.out_width + column, shape.out_width)
            acc = self._accumulate(source, at, group, vector, (rows, width), count, ahead, start)
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

    def _weights_to_prefetch(
        self, group: Expr, vector: Expr, count: int, tile: Expr, row_tiles: int
    ) -> _Prefetch | None:
        """Returns which weights of the next block a tile should prefetch, so that they are in the cache by then.

        Each of the first tiles prefetches one of the block's vectors, or several if there are few tiles.
        """
        vector_bytes = self.packed.weight[0].nbytes
        if self.packed.weight.nbytes < _COLD_BYTES or self.group_vectors <= count:
            return None
        each = ceil_div(count, row_tiles * self.task_rows)
        first = (group * self.group_vectors + vector + count + tile * each) * vector_bytes
        return _Prefetch(first, each, vector_bytes, tirx.Select(tile * each < count, 64, 0))

    def _fetch(self, ahead: _Prefetch, step: Expr) -> None:
        for i in range(ahead.vectors):
            line = T.address_of(self.w_flat[ahead.offset + i * ahead.vector_bytes + step * ahead.stride])
            prefetch(line)

    def _accumulate(
        self, source: Source, at: Expr, group: Expr, vector: Expr, tile: tuple[int, int], count: int,
        ahead: _Prefetch | None = None, start_pixel: tuple[Expr, int] | None = None,
    ) -> list[Buffer]:  # fmt: skip
        """Emits the reduction of one tile of rows x columns; accumulator i*count+j holds pixel i, output vector j.

        If the initial accumulators depend on the pixel, `start_pixel` is the number of the tile's first pixel, and the
        number of pixels in a row.
        """
        shape, dot = self.shape, self.dot
        pixels = [
            row * (shape.stride[0] * source.row_stride) + column * (shape.stride[1] * source.pixel_stride)
            for row in range(tile[0])
            for column in range(tile[1])
        ]
        # One buffer per vector: TVM moves larger ones off the stack, and LLVM then keeps them in memory.
        acc = [local(LANES, "int32") for _ in range(len(pixels) * count)]
        packed_vector = group * self.group_vectors + vector
        for j in range(count):
            for i in range(len(pixels)):
                for lane in range(0, LANES, dot.lanes):
                    first = (packed_vector + j) * LANES + lane
                    if start_pixel is not None:
                        number, of_row = start_pixel
                        number = number + i // tile[1] * of_row + i % tile[1]
                        first = number * (shape.groups * self.group_vectors * LANES) + first
                    start = self.acc_start[ramp(first, dot.lanes)]
                    T.buffer_store(acc[i * count + j], start, [ramp(lane, dot.lanes)])
        (height, columns), passes = self.packed.window, self.packed.passes
        with T.serial(0, passes * height) as row, T.serial(0, columns) as kw, T.serial(0, self.steps) as step:
            kh = row if passes == 1 else row % height
            tap = at + self._tap(source, kh, kw, step)
            if ahead is not None:
                self._fetch(ahead, (row * columns + kw) * self.steps + step)
            for i, pixel in enumerate(pixels):
                activation = dot.load_x(source.buffer, tap + pixel)
                for j, lane in itertools.product(range(count), range(0, LANES, dot.lanes)):
                    weights = self.w[packed_vector + j, row, kw, step, ramp(lane * dot.k_step, dot.lanes * dot.k_step)]
                    total, lanes = acc[i * count + j], ramp(lane, dot.lanes)
                    T.buffer_store(total, dot.accumulate(total[lanes], activation, weights), [lanes])
        if self.packed.excess is not None:
            for j in range(count):
                taps = [at + pixel for pixel in pixels]
                self._add_excess(source, taps, packed_vector + j, [acc[i * count + j] for i in range(len(pixels))])
        return acc

    def _tap(self, source: Source, row: Expr, column: Expr, step: Expr) -> Expr:
        """Returns the offset of a step's activations from the beginning of the window."""
        dilation = self.shape.dilation
        return (
            row * (dilation[0] * source.row_stride)
            + column * (dilation[1] * source.pixel_stride)
            + step * self.dot.k_step
        )

    def _add_excess(self, source: Source, pixels: list[Expr], packed_vector: Expr, acc: list[Buffer]) -> None:
        """Adds the excess of one packed vector; acc[i] belongs to the window that begins at pixels[i]."""
        dot = self.dot
        assert dot.add_odd is not None
        for register in range(LANES // dot.lanes):
            number = packed_vector * (LANES // dot.lanes) + register
            first, lanes = self.excess_first[number], ramp(register * dot.lanes, dot.lanes)
            with T.serial(0, self.excess_first[number + 1] - first) as i:
                tap = self._tap(source, *(self.excess_steps[first + i, part] for part in range(3)))
                weights = self.excess_w[first + i, ramp(0, 2 * dot.lanes)]
                for pixel, total in zip(pixels, acc, strict=True):
                    activation = dot.load_x(source.buffer, pixel + tap)
                    T.buffer_store(total, dot.add_odd(total[lanes], activation, weights), [lanes])

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
