"""The figures of the stages from the float model to int8 code."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.jobs.layer_differences.schema import DiffResult
from quantvm.jobs.layer_differences.waterfall import FP32, QDQ, TORCH, TVM, waterfall
from quantvm.progress import SILENT


def test_each_stage_is_compared_with_fp32_and_each_step_with_the_stage_before():
    base = np.array([[9, 1, 2, 3, 4, 5, 0, 0]], np.float32)
    swapped = np.array([[1, 9, 2, 3, 4, 5, 0, 0]], np.float32)
    forwards = {
        FP32: lambda x: base + x,
        QDQ: lambda x: base + x,
        TORCH: lambda x: swapped + x,
        TVM: lambda x: swapped + x,
    }
    row = waterfall(forwards, [(np.zeros((1, 1)), 0), (np.zeros((1, 1)), 6)], SILENT)
    assert row["images"] == 2
    fp32, qdq, torch, tvm = row["stages"]
    assert (fp32["top1"], fp32["top5"], fp32["sqnr_db"], fp32["cosine"]) == (50, 50, None, 1)
    assert qdq == {**fp32, "stage": QDQ}
    assert tvm == {**torch, "stage": TVM}
    assert (torch["top1"], torch["top5"], torch["top1_agreement"]) == (0, 0, 0)
    assert torch["sqnr_db"] == pytest.approx(10 * np.log10(136 / 128))
    assert torch["cosine"] == pytest.approx((136 - 64) / 136)
    assert torch["mean_abs_diff"] == 2
    assert [(loss["top1"], loss["top5"], loss["outputs_changed"]) for loss in row["losses"]] == [
        (0, 0, 0), (-50, -50, 25), (0, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("n_differing", "equal", "code"),
    [(0, 4, 0), (1, 4, 1), (0, 3, 1)],
    ids=["equal", "a layer differs", "fusion differs"],
)
def test_exit_codes(n_differing, equal, code):
    assert DiffResult({"n_differing": n_differing, "fusion": [{"n": 4, "equal": equal}]}).exit_code == code
