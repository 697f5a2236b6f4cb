"""Geometry of a convolution, and how its work is cut into register tiles and tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .builder import LANES, ceil_div
from .dot import DotProduct


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

    def flattened(self) -> Conv2dShape:
        """Returns a pointwise convolution as a matrix product over all pixels: one row of H*W."""
        return replace(self, in_height=1, in_width=self.in_height * self.in_width)


@dataclass(frozen=True)
class Schedule:
    """How a convolution is cut: accumulators per tile, and tasks per image.

    Attributes:
        pixels: output pixels of a tile, in each of its rows.
        vectors: output vectors of LANES channels of a tile.
        row_tasks: pieces that the output rows are cut into; the tiles of the row, where there is only one.
        channel_tasks: pieces that the output channels are cut into.
        tile_rows: rows of a tile; more than one only where `pixels` is the width of the output.
    """

    pixels: int
    vectors: int
    row_tasks: int
    channel_tasks: int
    tile_rows: int = 1


_TASK_CYCLES = 500.0
_EPILOGUE_CYCLES = 5.0
_TILE_CYCLES = 12.0
_STAGED_BYTES_PER_CYCLE = 16.0


def choose_schedule(shape: Conv2dShape, dot: DotProduct, threads: int, staged: bool) -> Schedule:
    """Returns the schedule of least estimated cycles for one image on `threads` cores.

    The model counts, per reduction step of a tile, the greater of multiply and load issue (two a cycle) and the
    accumulation latency, plus the epilogue and the copying of staged rows; tasks run in rounds of `threads`.
    """
    return min(_candidates(shape, dot, threads), key=lambda s: _estimated_cycles(shape, dot, threads, staged, s))


def _group_vectors(shape: Conv2dShape) -> int:
    return ceil_div(shape.out_channels // shape.groups, LANES)


def _candidates(shape: Conv2dShape, dot: DotProduct, threads: int) -> Iterator[Schedule]:
    width, group_vectors = shape.out_width, _group_vectors(shape)
    for vectors in range(1, min(group_vectors, 6) + 1):
        room = dot.greatest_pixels(vectors)
        blocks = ceil_div(group_vectors, vectors)
        for pixels in range(1, min(room, width) + 1):
            rows = shape.out_height if shape.out_height > 1 else ceil_div(width, pixels)
            for channel_tasks in sorted({1, min(threads, blocks), min(2 * threads, blocks)}):
                for row_tasks in sorted({min(k * threads, rows) for k in (1, 2, 4)} | {1}):
                    yield Schedule(pixels, vectors, row_tasks, channel_tasks)


def _estimated_cycles(shape: Conv2dShape, dot: DotProduct, threads: int, staged: bool, schedule: Schedule) -> float:
    pixels, width = schedule.pixels, shape.out_width
    group_vectors = _group_vectors(shape)
    run = shape.kernel[1] * (shape.in_channels // shape.groups)
    if shape.dilation[1] != 1 or shape.groups > 1:
        run = shape.kernel[1] * ceil_div(shape.in_channels // shape.groups, dot.k_step) * dot.k_step
    steps = shape.kernel[0] * ceil_div(run, dot.k_step)

    def tile(count: int) -> float:
        vectors = schedule.vectors
        loads = count + vectors * LANES // dot.lanes
        issue = max(count * vectors * dot.cycles, loads / 2, 4.0)
        return steps * issue + _EPILOGUE_CYCLES * count * vectors + _TILE_CYCLES

    rest = tile(width % pixels) if width % pixels else 0.0
    if shape.out_height > 1:
        task_rows = ceil_div(shape.out_height, schedule.row_tasks)
        block = task_rows * (width // pixels * tile(pixels) + rest)
    else:
        task_rows = 1
        block = ceil_div(ceil_div(width, pixels), schedule.row_tasks) * tile(pixels)
        block = block if schedule.row_tasks > 1 else width // pixels * tile(pixels) + rest
    blocks = ceil_div(ceil_div(group_vectors, schedule.vectors), schedule.channel_tasks)
    cycles = block * blocks * shape.groups + _TASK_CYCLES
    if staged:
        rows = (task_rows - 1) * shape.stride[0] + shape.kernel[0]
        cycles += rows * shape.in_width * shape.in_channels / _STAGED_BYTES_PER_CYCLE
    return cycles * ceil_div(schedule.row_tasks * schedule.channel_tasks, threads)
