"""The measured search for the fastest schedule of each convolution on this CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tvm

from quantvm.errors import MachineError
from quantvm.kernels import Kernel
from quantvm.kernels.conv import conv2d
from quantvm.kernels.isa import select_isa
from quantvm.kernels.schedule.schedule import Schedule, Work, choose_schedule, shortlist, with_other_tasks
from quantvm.kernels.schedule.schedules import ScheduleRecord
from quantvm.numerics.requantization import requantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.progress import SILENT, Progress
from quantvm.tvm_compat import use_threads

_BEST = 10
"""How many of the tiles that the cost model rates best are measured."""
_FINALISTS = 2
_MIN_GAIN = 0.03
"""A schedule is recorded only if it beats the cost model's choice by this share; less is within the noise."""
_COLD_BYTES = 24 << 20
"""So many bytes of copies of the weights are used in turn: in a network, weights do not stay cached between calls."""
_ROUNDS = 5
_ROUND_S = 0.004
_FINAL_ROUND_S = 0.012


def tune(work: Iterable[Work], target: Any, *, progress: Progress = SILENT) -> Iterator[ScheduleRecord]:
    """Yields for each convolution the fastest schedule found, which may be the cost model's own.

    The kernel for one image is measured, with requantization and relu. Candidates run in turn, in rounds of a few
    milliseconds, and are compared by their lower quartile, so that other load on the machine matters little.

    Args:
        work: the convolutions.
        target: a TVM target of this machine.
        progress: advanced for each convolution.

    Raises:
        MachineError: TVM's pool began with fewer threads than a convolution is to be cut for.
    """
    todo = list(work)
    use_threads(max((item.threads for item in todo), default=1))
    with progress.task("measuring schedules", total=len(todo)) as task:
        for item in todo:
            yield _tuned(item, target)
            task.advance()


def gains(record: ScheduleRecord) -> bool:
    """Returns whether a schedule is faster than the cost model's by enough to be recorded."""
    return record.time_us < (1 - _MIN_GAIN) * record.model_time_us


def _tuned(work: Work, target: Any) -> ScheduleRecord:
    used = use_threads(work.threads)
    if used != work.threads:
        raise MachineError(
            f"TVM computes with {used} threads in this process, asked for {work.threads}; set TVM_NUM_THREADS"
        )
    trial = _Trial(work, target)
    chosen = choose_schedule(work)
    tiles = list(dict.fromkeys([chosen, *shortlist(work, _BEST)]))
    times_us = trial.measure(tiles, _ROUND_S)
    finalists = sorted(tiles, key=times_us.__getitem__)[:_FINALISTS]
    others = [other for best in finalists for other in with_other_tasks(best, work)]
    if work.threads > 1 and others:
        times_us.update(trial.measure(others, _ROUND_S))
        finalists = sorted(times_us, key=times_us.__getitem__)[:_FINALISTS]
    final_us = trial.measure(list(dict.fromkeys([chosen, *finalists])), _FINAL_ROUND_S)
    best = min(final_us, key=final_us.__getitem__)
    return ScheduleRecord(work, best, final_us[best], final_us[chosen])


class _Trial:
    """One convolution of random integers, to be run with several schedules."""

    def __init__(self, work: Work, target: Any) -> None:
        self._work, self._target, shape = work, target, work.shape
        self._isa = select_isa(target)
        rng = np.random.default_rng(0)
        weight_shape = (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups)
        largest = 127 if work.product.add_odd is None else 64  # nearly no pair of a weight that is split is cut
        self._weight_i8 = rng.integers(-largest, largest + 1, weight_shape, np.int8)
        self._requantization = requantization(
            "fbgemm", "conv", input_q=QuantParams(0.02, 3), weight_scales=np.full(shape.out_channels, 0.01),
            bias_f32=np.zeros(shape.out_channels, np.float32), output_q=QuantParams(0.5, 3), relu=True,
            channels=shape.out_channels,
        )  # fmt: skip
        x_u8 = rng.integers(0, 256, (1, shape.in_height, shape.in_width, shape.in_channels), np.uint8)
        self._x = tvm.runtime.tensor(x_u8)
        self._y = tvm.runtime.tensor(np.zeros((1, shape.out_height, shape.out_width, shape.out_channels), np.uint8))
        self._functions: dict[Schedule, Any] = {}
        self._constants: list[list[Any]] = []
        self._next = 0

    def measure(self, schedules: Sequence[Schedule], round_s: float) -> dict[Schedule, float]:
        """Returns the lower quartile of the times of one call under each schedule, in microseconds."""
        self._compile([schedule for schedule in schedules if schedule not in self._functions])
        samples_us: dict[Schedule, list[float]] = {schedule: [] for schedule in schedules}
        for _ in range(_ROUNDS):
            for schedule, samples in samples_us.items():
                samples += self._round(self._functions[schedule], round_s)
        return {schedule: float(np.percentile(samples, 25)) for schedule, samples in samples_us.items()}

    def _kernel(self, schedule: Schedule) -> Kernel:
        return conv2d.conv2d(
            self._work.shape, self._weight_i8, 3, self._requantization, self._work.product, threads=self._work.threads,
            schedule=schedule, isa=self._isa,
        )  # fmt: skip

    def _compile(self, schedules: Sequence[Schedule]) -> None:
        if not schedules:
            return
        kernels = {f"schedule_{i}": self._kernel(schedule) for i, schedule in enumerate(schedules)}
        functions = {name: kernel.func.with_attr("global_symbol", name) for name, kernel in kernels.items()}
        library = tvm.compile(tvm.IRModule(functions), target=self._target)
        self._functions |= {schedule: library[name] for name, schedule in zip(kernels, schedules, strict=True)}
        if not self._constants:
            constants = next(iter(kernels.values())).constants
            copies = max(2, min(64, _COLD_BYTES // max(1, constants[0].nbytes)))
            self._constants = [[tvm.runtime.tensor(constant) for constant in constants] for _ in range(copies)]

    def _round(self, function: Any, round_s: float) -> list[float]:
        """Returns the times of single calls in microseconds, without the first, whose caches are cold."""
        samples: list[float] = []
        end_s = time.perf_counter() + round_s
        while len(samples) < 4 or time.perf_counter() < end_s:
            constants = self._constants[self._next]
            self._next = (self._next + 1) % len(self._constants)
            start_s = time.perf_counter()
            function(self._x, *constants, self._y)
            samples.append(1e6 * (time.perf_counter() - start_s))
        return samples[1:]


def merged(old: Iterable[ScheduleRecord], new: Iterable[ScheduleRecord]) -> tuple[ScheduleRecord, ...]:
    """Returns the old records, replaced by new ones; a new one without a gain removes the old."""
    found = {record.work: record for record in (*old, *new)}
    return tuple(record for record in found.values() if gains(record))
