"""samples.parquet: one row for each image and model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.units import Side
from quantvm.score.schema import SampleRow
from quantvm.storage.output_files import replacing

if TYPE_CHECKING:
    import pyarrow as pa


def samples_schema() -> pa.Schema:
    """Returns the columns of samples.parquet; top-5 lists are class indices, best first."""
    import pyarrow as pa

    top5 = pa.list_(pa.int32())
    return pa.schema(
        [
            ("model", pa.string()),
            ("flow", pa.string()),
            ("numerics", pa.string()),
            ("id", pa.string()),
            ("label", pa.int32()),
            ("fp32_top5", top5),
            ("torch_top5", top5),
            ("tvm_top5", top5),
            ("identical", pa.bool_()),
            ("max_abs_diff", pa.float64()),
        ]
    )


def samples_table(side: Side, rows: Part, fp32: Part) -> pa.Table:
    """Returns the rows of one model, flow and numerics as samples.parquet holds them.

    Args:
        side: what the rows are of.
        rows: its rows, ordered by id.
        fp32: those of its float model, of all of these images or of some.
    """
    import pyarrow as pa

    n, columns = len(rows), rows.columns
    fp32_top5 = dict(zip(fp32.ids, fp32.columns["fp32_top5"].tolist(), strict=True)) if len(fp32) else {}
    compared = "n_identical" in columns
    found: dict[str, Any] = {
        "model": [side.model] * n,
        "flow": [side.flow] * n,
        "numerics": [side.numerics] * n,
        "id": rows.ids,
        "label": rows.labels,
        "fp32_top5": [fp32_top5.get(image) for image in rows.ids],
        "torch_top5": columns["torch_top5"].tolist() if compared else [None] * n,
        "tvm_top5": columns["tvm_top5"].tolist() if n else [],
        "identical": columns["n_identical"] == columns["n_outputs"] if compared else [None] * n,
        "max_abs_diff": columns["max_abs_diff"] if compared else [None] * n,
    }
    return pa.table({name: pa.array(found[name], field.type) for name, field in _fields()}, schema=samples_schema())


def sample_rows(table: pa.Table) -> list[SampleRow]:
    """Returns the rows as dicts."""
    return table.to_pylist()


def write_samples(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes the tables one behind the other; without any, a file with the columns alone.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    with replacing(path) as unfinished, pq.ParquetWriter(unfinished, samples_schema()) as writer:
        for table in tables:
            writer.write_table(table)


def _fields() -> list[tuple[str, Any]]:
    return [(field.name, field) for field in samples_schema()]
