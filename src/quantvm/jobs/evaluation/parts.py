"""What was computed for one unit of work, as a Parquet file: one row for each image, and how they were computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.score.image_columns import Columns, joined

if TYPE_CHECKING:
    import pyarrow as pa

_FACTS = b"quantvm"


@dataclass(frozen=True)
class Part:
    """The rows of one unit: those of all its images, or of its first batches if the work was broken off.

    Attributes:
        ids: of the images, in the order of evaluation.
        labels: (N,), int64.
        columns: see `score/image_columns.py`; `fp32_top5` alone for a float model.
        facts: how they were computed: `fingerprint` of what decides the numbers, `cpus`, `duration_s`.
    """

    ids: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: Columns = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> Part:
        """Returns the first n rows."""
        columns = {name: values[:n] for name, values in self.columns.items()}
        return Part(self.ids[:n], self.labels[:n], columns, self.facts)

    def followed_by(self, other: Part) -> Part:
        """Returns the rows of both; the facts are those of `other`, with the processors and the durations of both."""
        if not self.ids:
            return other
        duration_s = self.facts.get("duration_s", 0.0) + other.facts.get("duration_s", 0.0)
        return Part(
            self.ids + other.ids,
            np.concatenate([self.labels, other.labels]),
            joined([self.columns, other.columns]),
            {**other.facts, "duration_s": duration_s, "cpus": cpus_of([self, other])},
        )


def cpus_of(parts: Iterable[Part]) -> list[str]:
    """Returns the names of the processors that computed the parts, sorted."""
    return sorted({cpu for part in parts for cpu in part.facts.get("cpus", ())})


def part_bytes(part: Part) -> bytes:
    """Returns the part as a Parquet file; equal parts are equal files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = as_table({"id": part.ids, "label": part.labels, **part.columns})
    table = table.replace_schema_metadata({_FACTS: json.dumps(part.facts, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def part_of_bytes(content: bytes) -> Part:
    """Returns the part that a Parquet file holds.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False, page_checksum_verification=True)
        facts = json.loads((table.schema.metadata or {})[_FACTS])
        columns = {name: _array(table.column(name)) for name in table.column_names if name not in ("id", "label")}
        return Part(tuple(table.column("id").to_pylist()), _array(table.column("label")), columns, facts)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:  # OSError: damaged, as Arrow says it
        raise ValueError(str(error)) from error


def part_in(path: Path) -> Part:
    """Returns the part of a file; an empty one if it is not there, or damaged: then it is computed again."""
    try:
        return part_of_bytes(path.read_bytes())
    except (OSError, ValueError):
        return Part()


def as_table(columns: Mapping[str, Sequence[str] | np.ndarray]) -> pa.Table:
    """Returns columns as a table; (N, k) arrays become lists."""
    import pyarrow as pa

    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Sequence[str] | np.ndarray) -> pa.Array:
    import pyarrow as pa

    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    n, k = values.shape
    return pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), pa.array(values.reshape(-1)))


def _array(column: Any) -> np.ndarray:
    import pyarrow as pa

    column = column.combine_chunks()
    if not pa.types.is_list(column.type):
        return np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(column), -1)) if len(column) else values.reshape(0, 0)
