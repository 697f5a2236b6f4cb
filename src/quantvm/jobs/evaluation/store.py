"""Where the parts of an evaluation are kept: in its run folder, or in memory if it has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from quantvm.jobs.evaluation.parts import Part, cpus_of, part_bytes, part_in
from quantvm.jobs.evaluation.units import Shard, Side, folder_name
from quantvm.score.image_columns import joined
from quantvm.storage.output_files import make_folder, write_file

_PROOF = "cpu-"


class PartStore:
    """The parts of all units. A part is written whole or not at all, and only one process writes.

    Args:
        folder: of the parts; None: they are kept in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._in_memory: dict[tuple[Side, int], Part] = {}
        self._proofs_in_memory: dict[tuple[Side, str], Part] = {}
        self.version = 0
        """How often something was added."""

    def find(self, side: Side, shard: Shard, fingerprint: str) -> Part:
        """Returns what was computed before of a unit: its first batches, or all; an empty part if nothing can be used.

        Args:
            side: of the unit.
            shard: of the unit; the part must begin with the same images and labels. If it has more or fewer images,
                only whole batches are used: the last one would have another size in this run.
            fingerprint: the part must have the same.
        """
        part = self._read(side, shard.index)
        if len(part) != len(shard):
            n = min(len(part), len(shard))
            part = part.first(n - n % shard.batch_size)
        known = shard.samples[: len(part)]
        if (
            part.facts.get("fingerprint") == fingerprint
            and part.ids == tuple(sample.id for sample in known)
            and part.labels.tolist() == [sample.label for sample in known]
        ):
            return part
        return Part()

    def add(self, side: Side, shard: Shard, part: Part) -> None:
        """Keeps a part; it replaces the one that its unit had.

        Raises:
            OutputError: it cannot be written.
        """
        self.version += 1
        if self._folder is None:
            self._in_memory[side, shard.index] = part
            return
        path = self._path(side, shard.index)
        make_folder(path.parent)
        write_file(path, part_bytes(part))

    def rows(self, side: Side, shards: Iterable[Shard] | None, fingerprint: str) -> Part:
        """Returns all rows of a side that can be used, ordered by the images' ids.

        Args:
            side: of the rows.
            shards: of the images; None: whatever images there are.
            fingerprint: the parts must have the same.
        """
        if shards is None:
            found = (self._read(side, index) for index in self._indices(side))
            parts = [part for part in found if len(part) and part.facts.get("fingerprint") == fingerprint]
        else:
            parts = [part for shard in shards if len(part := self.find(side, shard, fingerprint))]
        if not parts:
            return Part()
        ids = [image for part in parts for image in part.ids]
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__))
        return Part(
            tuple(ids[i] for i in order),
            np.concatenate([part.labels for part in parts])[order],
            {name: values[order] for name, values in joined(part.columns for part in parts).items()},
            {"cpus": cpus_of(parts)},
        )

    def _indices(self, side: Side) -> list[int]:
        if self._folder is None:
            return sorted(index for other, index in self._in_memory if other == side)
        return sorted(int(path.stem) for path in (self._folder / side.name).glob("[0-9]*.parquet"))

    def add_proof(self, side: Side, part: Part) -> None:
        """Keeps rows that one kind of processor computed only for a comparison with other kinds.

        Raises:
            OutputError: they cannot be written.
        """
        self.version += 1
        (cpu,) = cpus_of([part])
        if self._folder is None:
            self._proofs_in_memory[side, cpu] = part
            return
        path = self._folder / side.name / f"{_PROOF}{folder_name(cpu)}.parquet"
        make_folder(path.parent)
        write_file(path, part_bytes(part))

    def proofs(self, side: Side, fingerprint: str) -> list[Part]:
        """Returns the rows of each kind of processor that were computed for a comparison."""
        if self._folder is None:
            found = [part for (other, _), part in sorted(self._proofs_in_memory.items(), key=str) if other == side]
        else:
            paths = sorted((self._folder / side.name).glob(f"{_PROOF}*.parquet"))
            found = [part_in(path) for path in paths]
        return [part for part in found if part.facts.get("fingerprint") == fingerprint]

    def _read(self, side: Side, index: int) -> Part:
        if self._folder is None:
            return self._in_memory.get((side, index), Part())
        return part_in(self._path(side, index))

    def _path(self, side: Side, index: int) -> Path:
        assert self._folder is not None
        return self._folder / side.name / f"{index:05}.parquet"
