"""Geometry of a convolution, and how its work is cut into register tiles and tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from quantvm.kernels.builder import LANES, ceil_div
from quantvm.kernels.conv.dot import BY_NAME, DotProduct


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
        """Number of products summed into one output."""
        return self.kernel[0] * self.kernel[1] * self.in_channels // self.groups

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return self.out_height * self.out_width * self.out_channels * self.reduction

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads exactly its own input pixel."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    def merged(self) -> Conv2dShape:
        """Returns the shape to schedule: pointwise convolutions become matrix products over one row of H*W pixels."""
        if not self.is_pointwise or self.in_height == 1:
            return self
        return replace(self, in_height=1, in_width=self.in_height * self.in_width)

    @property
    def has_odd_windows(self) -> bool:
        """Whether pairs of neighbours along a group's window can span two taps."""
        return (self.in_channels // self.groups) % 2 == 1 and self.kernel != (1, 1)

    def as_windows(self, step: int) -> Conv2dShape:
        """Returns a pointwise convolution whose pixels are this one's windows; each has one run of taps per group.

        Args:
            step: the length of a run is rounded up to a multiple of this.
        """
        run = math.prod(self.kernel) * (self.in_channels // self.groups)
        channels = self.groups * -(-run // step) * step
        return Conv2dShape(self.out_height, self.out_width, channels, self.out_channels, groups=self.groups)

    def is_staged(self, dot: DotProduct) -> bool:
        """Whether input rows are copied before they are read, because of padding or to get whole steps of channels."""
        return any(self.padding) or (self.in_channels // self.groups) % dot.k_step != 0


@dataclass(frozen=True)
class Work:
    """A convolution and what computes it; the fastest schedule depends on both.

    Attributes:
        shape: geometry.
        dot: name of the dot product.
        threads: cores to cut the work for.
    """

    shape: Conv2dShape
    dot: str
    threads: int

    @property
    def product(self) -> DotProduct:
        """The dot product."""
        return BY_NAME[self.dot]

    def merged(self) -> Work:
        """Returns the work of the shape to schedule, see `Conv2dShape.merged`."""
        return replace(self, shape=self.shape.merged())


@dataclass(frozen=True)
class Schedule:
    """How a convolution is cut: accumulators per tile, and tasks per image.

    Attributes:
        pixels: output pixels in each row of a tile.
        vectors: output vectors of a tile, of LANES channels each.
        row_tasks: number of pieces into which the output rows are cut, or the tiles if there is only one row.
        channel_tasks: number of pieces into which the output channels are cut.
        tile_rows: rows of a tile; more than one only if `pixels` is the width of the output.
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


def choose_schedule(work: Work) -> Schedule:
    """Returns the schedule with the fewest estimated cycles for one image.

    For each reduction step of a tile, the model counts the greater of multiply and load issue (two per cycle) and the
    accumulation latency. It adds the epilogue and the copying of staged rows. Tasks run in rounds, one on each core.
    """
    work = work.merged()
    return min(_candidates(work), key=lambda schedule: _estimated_cycles(work, schedule))


def shortlist(work: Work, count: int) -> list[Schedule]:
    """Returns schedules worth measuring, of different tiles: the `count` with the fewest estimated cycles, best first.

    After them come tiles that the model may underrate: smaller ones, one for each number of vectors, and tiles of
    several whole rows.
    """
    work = work.merged()
    ranked = sorted(_candidates(work), key=lambda schedule: _estimated_cycles(work, schedule))
    of_tile: dict[tuple[int, int], Schedule] = {}
    for schedule in ranked:
        of_tile.setdefault((schedule.pixels, schedule.vectors), schedule)
    tiles = list(of_tile.values())
    small: dict[int, Schedule] = {}
    for schedule in tiles[count:]:
        if schedule.pixels * schedule.vectors <= 2 * work.product.greatest_pixels(1) // 3:
            small.setdefault(schedule.vectors, schedule)
    return [*tiles[:count], *small.values(), *_of_several_rows(work, tiles)]


def _of_several_rows(work: Work, schedules: list[Schedule]) -> list[Schedule]:
    shape, found = work.shape, []
    for schedule in schedules:
        room = min(work.product.greatest_pixels(schedule.vectors) // schedule.pixels, shape.out_height)
        if schedule.pixels == shape.out_width and shape.out_height > 1 and room > 1:
            found.append(replace(schedule, tile_rows=room))
    return found


def with_other_tasks(schedule: Schedule, work: Work) -> list[Schedule]:
    """Returns the schedule with all other numbers of tasks that the search considers."""
    others = (
        replace(schedule, row_tasks=row_tasks, channel_tasks=channel_tasks)
        for row_tasks, channel_tasks in _task_counts(work.merged(), schedule.pixels, schedule.vectors)
    )
    return [other for other in others if other != schedule]


def schedule_problem(schedule: Schedule, shape: Conv2dShape, dot: DotProduct) -> str | None:
    """Returns why a kernel of this shape cannot have this schedule, or None."""
    shape = shape.merged()
    counts = (schedule.pixels, schedule.vectors, schedule.row_tasks, schedule.channel_tasks, schedule.tile_rows)
    if min(counts) < 1:
        return f"got {schedule}, expected counts of at least 1"
    if schedule.pixels > shape.out_width:
        return f"tiles of {schedule.pixels} pixels in rows of {shape.out_width}"
    if schedule.tile_rows > 1 and schedule.pixels != shape.out_width:
        return f"tiles of {schedule.tile_rows} rows that are {schedule.pixels} pixels wide, expected {shape.out_width}"
    vectors, room = schedule.vectors, dot.greatest_pixels(schedule.vectors)
    if schedule.pixels * schedule.tile_rows > room:
        return f"tiles of {schedule.pixels * schedule.tile_rows} pixels and {vectors} vectors, expected at most {room}"
    return None


def _group_vectors(shape: Conv2dShape) -> int:
    return ceil_div(shape.out_channels // shape.groups, LANES)


def _candidates(work: Work) -> Iterator[Schedule]:
    for vectors in range(1, min(_group_vectors(work.shape), 6) + 1):
        for pixels in range(1, min(work.product.greatest_pixels(vectors), work.shape.out_width) + 1):
            for row_tasks, channel_tasks in _task_counts(work, pixels, vectors):
                yield Schedule(pixels, vectors, row_tasks, channel_tasks)


def _task_counts(work: Work, pixels: int, vectors: int) -> Iterator[tuple[int, int]]:
    """Yields useful numbers of tasks, over rows and over channels."""
    shape, threads = work.shape, work.threads
    blocks = ceil_div(_group_vectors(shape), vectors)
    rows = shape.out_height if shape.out_height > 1 else ceil_div(shape.out_width, pixels)
    for channel_tasks in sorted({1, min(threads, blocks), min(2 * threads, blocks)}):
        for row_tasks in sorted({min(k * threads, rows) for k in (1, 2, 4)} | {1}):
            yield row_tasks, channel_tasks


def _estimated_cycles(work: Work, schedule: Schedule) -> float:
    shape, dot = work.shape, work.product
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
    if shape.is_staged(dot):
        rows = (task_rows - 1) * shape.stride[0] + shape.kernel[0]
        cycles += rows * shape.in_width * shape.in_channels / _STAGED_BYTES_PER_CYCLE
    return cycles * ceil_div(schedule.row_tasks * schedule.channel_tasks, work.threads)
