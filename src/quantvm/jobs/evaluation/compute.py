"""Computes units of work: the answers of a network's engines on one shard of the images.

The engines run the very same array of each batch, one after the other, with equal threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from quantvm.data import Batch
from quantvm.jobs.evaluation.network import Engines
from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.unit_messages import ShardTask
from quantvm.jobs.evaluation.units import Side
from quantvm.score.accuracy import top_k
from quantvm.score.image_columns import Columns, joined
from quantvm.score.parity import check_outputs, compared


class ShardWork:
    """The units of one network on one shard, under way: the parts grow batch by batch.

    Args:
        task: what is missing; the units go on from what is done.
        cpu: the name of this machine's processor.
    """

    def __init__(self, task: ShardTask, cpu: str) -> None:
        self._shard, self._done, self._wanted = task.shard, dict(task.done), task.wanted
        self._facts: dict[Side, dict[str, Any]] = {
            side: {"fingerprint": fingerprint, "cpus": [cpu]} for side, fingerprint in task.fingerprints.items()
        }
        self._columns: dict[Side, list[Columns]] = {side: [] for side in task.done}
        self._ids: dict[Side, list[str]] = {side: [] for side in task.done}
        self._labels: dict[Side, list[np.ndarray]] = {side: [] for side in task.done}
        self._started_s = time.monotonic()

    def run(self, engines: Engines, batches: Iterator[Batch]) -> Iterator[int]:
        """Computes the units; yields the number of images of each batch when all engines have answered.

        Args:
            engines: of the network.
            batches: begin with those of the task's `samples`; no others are taken.

        Raises:
            OutputShapeError: an engine's output is missing or has another shape than the other's.
        """
        start = min((len(self._done[side]) for side in self._missing()), default=0)
        while self._missing():
            batch = next(batches)
            sides = [side for side in self._missing() if len(self._done[side]) <= start]
            self._add(batch, sides, engines)
            start += len(batch)
            yield len(batch)

    def parts(self) -> dict[Side, Part]:
        """Returns the units as far as they are computed: whole batches, the same for all units of the code."""
        duration_s = time.monotonic() - self._started_s
        found = {}
        for side, columns in self._columns.items():
            if not columns:
                continue
            new = Part(
                tuple(self._ids[side]),
                np.concatenate(self._labels[side]),
                joined(columns),
                {**self._facts[side], "duration_s": duration_s},
            )
            found[side] = self._done[side].followed_by(new)
        return found

    def _missing(self) -> list[Side]:
        return [side for side, n in self._wanted.items() if self._count(side) < n]

    def _count(self, side: Side) -> int:
        return len(self._done[side]) + len(self._ids[side])

    def _add(self, batch: Batch, sides: list[Side], engines: Engines) -> None:
        found: dict[Side, Columns] = {}
        tvm = [side for side in sides if not side.is_float]
        for side in sides:
            if side.is_float:
                assert engines.fp32 is not None
                outputs_f32 = check_outputs("PyTorch fp32", engines.fp32.run(batch.x_f32), len(batch))
                found[side] = {"fp32_top5": top_k(outputs_f32)}
        expected_f32 = None
        if engines.torch is not None and tvm:
            expected_f32 = check_outputs("PyTorch", engines.torch.run(batch.x_f32), len(batch))
        for side in tvm:
            found[side] = compared(engines.tvm[side.numerics].run(batch.x_f32), expected_f32, len(batch))
        for side, columns in found.items():  # only now, so that an interruption leaves all units at the same batch
            self._columns[side].append(columns)
            self._ids[side] += batch.ids
            self._labels[side].append(batch.labels)
