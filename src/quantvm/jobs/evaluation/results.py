"""Figures of an evaluation from the parts of its units: rows of run.json, agreement of flows, samples.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.jobs.evaluation.cpu_kinds import same_bits
from quantvm.jobs.evaluation.network import Network
from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.samples import sample_rows, samples_table, write_samples
from quantvm.jobs.evaluation.schema import SameBitsRow
from quantvm.jobs.evaluation.store import PartStore
from quantvm.jobs.evaluation.units import Shard, Side
from quantvm.score.accuracy import AccuracyCount
from quantvm.score.agreement import Answers, agreement_of_flows
from quantvm.score.parity import mistrust_of, parity_row
from quantvm.score.schema import AccuracyRow, AgreementRow, SampleRow

_MOST_READ = 3
"""Sides of which rows are kept in memory, for a model, its float model and another numerics."""


class Results:
    """What the parts say.

    Args:
        store: of the parts.
        shards: of the images of this run; None: whatever images there are.
    """

    def __init__(self, store: PartStore, shards: Sequence[Shard] | None) -> None:
        self._store, self._shards = store, shards
        self._listed: list[tuple[Network, str]] = []
        self._read: dict[tuple[Side, str, int], Part] = {}  # the sides that were read last

    def add(self, network: Network, numerics: str) -> None:
        """Lists a side in samples.parquet."""
        self._listed.append((network, numerics))

    def of(self, network: Network, numerics: str) -> dict[str, Any]:
        """Returns the fields of ModelRow that follow from the images computed so far; none without any."""
        rows, fp32 = self._rows(network, numerics), self._rows(network, None)
        if not len(rows):
            return {}
        scale = network.by_numerics[numerics]["output_scale"]
        return {
            "n_images": len(rows),
            "n_fp32_images": len(fp32),
            "fp32": _accuracy(fp32, "fp32") if len(fp32) else None,
            "torch": _accuracy(rows, "torch") if "torch_top5" in rows.columns else None,
            "tvm": _accuracy(rows, "tvm"),
            "parity": parity_row(rows.columns, rows.ids, scale) if "n_identical" in rows.columns else None,
            "cpus": rows.facts["cpus"],
            "same_bits": self._same_bits(network, numerics),
        }

    def _same_bits(self, network: Network, numerics: str) -> SameBitsRow | None:
        side = Side(network.model, network.flow, numerics)
        return same_bits(self._store.proofs(side, network.fingerprint(side)))

    def mistrust(self, network: Network, numerics: str) -> str | None:
        """Returns why a side's outputs prove little, or None."""
        return mistrust_of(self._rows(network, numerics).columns)

    def agreement(self) -> list[AgreementRow]:
        """Returns how often models of several flows agree."""
        found: dict[str, list[Answers]] = {}
        for network, numerics in self._listed:
            rows, fp32 = self._rows(network, numerics), self._rows(network, None)
            actual = network.by_numerics[numerics]["numerics"]
            best = {"tvm": rows.columns["tvm_top5"][:, 0]}
            if "torch_top5" in rows.columns:
                best["torch"] = rows.columns["torch_top5"][:, 0]
            answers = Answers(network.flow, actual, rows.ids, rows.labels, best["tvm"], best.get("torch"))
            if len(fp32):
                answers.fp32 = dict(zip(fp32.ids, fp32.columns["fp32_top5"][:, 0].tolist(), strict=True))
            found.setdefault(network.model, []).append(answers)
        return agreement_of_flows(found)

    def samples(self) -> list[SampleRow]:
        """Returns the rows of samples.parquet."""
        tables = (self._table(network, numerics) for network, numerics in self._listed)
        return [row for table in tables for row in sample_rows(table)]

    def write_samples(self, path: Path) -> None:
        """Writes samples.parquet, one side at a time."""
        write_samples(path, (self._table(network, numerics) for network, numerics in self._listed))

    def _table(self, network: Network, numerics: str) -> Any:
        actual = network.by_numerics[numerics]["numerics"]
        rows, fp32 = self._rows(network, numerics), self._rows(network, None)
        return samples_table(Side(network.model, network.flow, actual), rows, fp32)

    def _rows(self, network: Network, numerics: str | None) -> Part:
        """Returns all rows of a side, ordered by id; of the float model if `numerics` is None."""
        side = Side.of_float(network.model) if numerics is None else Side(network.model, network.flow, numerics)
        if side.is_float and network.float_digest is None:
            return Part()
        key = (side, network.fingerprint(side), self._store.version)
        if key not in self._read:
            while len(self._read) > _MOST_READ:
                del self._read[next(iter(self._read))]
            self._read[key] = self._store.rows(side, self._shards, network.fingerprint(side))
        return self._read[key]


def _accuracy(rows: Part, side: str) -> AccuracyRow:
    count = AccuracyCount()
    count.add(rows.columns[f"{side}_top5"], np.asarray(rows.labels))
    return count.row()
