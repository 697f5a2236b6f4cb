"""samples.parquet: one row for each image and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantvm.score.schema import SampleRow

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


def samples_bytes(samples: list[SampleRow]) -> bytes:
    """Returns the rows as a Parquet file; without rows, a file with the columns alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(samples, schema=samples_schema()), sink)
    return sink.getvalue().to_pybytes()
