"""What is computed of the raw outputs for one image, in columns: every figure of a result follows from these.

The figures of a run are those of its rows, put in order of the images' ids. So they do not depend on how the images
were cut into batches and pieces, nor on the order in which these were computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from quantvm.score.accuracy import top_k

ArrayF32 = npt.NDArray[np.float32]
Columns = dict[str, np.ndarray]
"""Arrays of equal length N by name; the top-5 columns are (N, min(5, classes)).

| column | dtype | meaning |
| --- | --- | --- |
| `<side>_top5`, `<side>_top5_raw` | int64, float32 | the best classes and their raw outputs, best first |
| `<side>_zeros` | int64 | how many raw outputs are zero |
| `<side>_same_value` | int64 | how many raw outputs have the most frequent value |
| `<side>_finite` | bool | whether all are finite |
| `<side>_digest` | uint64 | of all values; -0 counts as 0 |
| `n_outputs` | int64 | how many raw outputs there are |
| `n_identical` | int64 | those with the same 32 bits on both sides |
| `max_abs_diff`, `sum_abs_diff` | float64 | of both sides' raw outputs, over float32; inf if one is not finite |
| `greatest_index`, `greatest_torch`, `greatest_tvm` | int64, float32 | the class that differs most, and both values |

A side is `tvm` (actual) or `torch` (expected). Without a reference there are only the columns of `tvm`.
"""


def columns_of_side(side: str, outputs_f32: ArrayF32) -> Columns:
    """Returns the columns of one side.

    Args:
        side: tvm or torch.
        outputs_f32: raw outputs, (N, classes).
    """
    top5 = top_k(outputs_f32)
    return {
        f"{side}_top5": top5,
        f"{side}_top5_raw": np.take_along_axis(outputs_f32, top5, axis=1),
        f"{side}_zeros": (outputs_f32 == 0).sum(axis=1),
        f"{side}_same_value": np.array([np.unique(row, return_counts=True)[1].max() for row in outputs_f32]),
        f"{side}_finite": np.isfinite(outputs_f32).all(axis=1),
        f"{side}_digest": np.array([_digest(row) for row in outputs_f32], dtype=np.uint64),
        "n_outputs": np.full(len(outputs_f32), outputs_f32.shape[1]),
    }


def columns_of_comparison(actual_f32: ArrayF32, expected_f32: ArrayF32) -> Columns:
    """Returns the columns that compare both sides, and those of each.

    Args:
        actual_f32: TVM's raw outputs, (N, classes).
        expected_f32: the reference's, of the same shape.
    """
    # Bits are compared, not values: NaN equals itself, and -0.0 differs from 0.0.
    actual_bits = np.ascontiguousarray(actual_f32).view(np.uint32)
    identical = actual_bits == np.ascontiguousarray(expected_f32).view(np.uint32)
    with np.errstate(invalid="ignore"):
        # Over float32: the difference is the one that the original benchmark printed.
        abs_diff = np.abs(actual_f32 - expected_f32).astype(np.float64)
    abs_diff[~np.isfinite(abs_diff)] = math.inf
    abs_diff[identical] = 0.0
    # Among equal differences, prefer one whose bits differ: 0.0 and -0.0 differ by 0.
    greatest = np.where(identical, -1.0, abs_diff).argmax(axis=1)
    rows = np.arange(len(actual_f32))
    return {
        **columns_of_side("tvm", actual_f32),
        **columns_of_side("torch", expected_f32),
        "n_identical": identical.sum(axis=1),
        "max_abs_diff": abs_diff.max(axis=1),
        "sum_abs_diff": abs_diff.sum(axis=1),
        "greatest_index": greatest,
        "greatest_torch": expected_f32[rows, greatest],
        "greatest_tvm": actual_f32[rows, greatest],
    }


def joined(parts: Iterable[Mapping[str, np.ndarray]]) -> Columns:
    """Returns the rows of all parts in order; the parts must have the same columns."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _digest(row_f32: ArrayF32) -> int:
    return int.from_bytes(hashlib.blake2b((row_f32 + np.float32(0)).tobytes(), digest_size=8).digest(), "little")
