"""What is called a tie, and by which reason."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from quantvm.progress import SILENT
from quantvm.verification.ties import explain_ties, what_decides


@pytest.mark.parametrize(
    ("operators", "engine", "reason"),
    [
        ({"relax.nn.conv2d", "relax.add", "relax.dequantize"}, "onnx", "the order of a float sum"),
        ({"relax.nn.avg_pool2d", "relax.dequantize"}, "pt2e", "the order of a float sum"),
        ({"relax.sigmoid", "relax.multiply", "relax.dequantize"}, "tflite", "the last bit of a function"),
        ({"relax.add", "relax.dequantize"}, "pt2e", "the last bit of a quotient"),
        ({"relax.add", "relax.dequantize"}, "onnx", None),
        ({"relax.dequantize"}, "tflite", None),
    ],
)
def test_what_decides(operators, engine, reason):
    assert what_decides(operators, divides=engine == "pt2e") == reason


def test_a_tie_that_nothing_decides_stays_unexplained():
    expected, own = np.array([2, 4], np.uint8), np.array([3, 4], np.uint8)
    counts = [SimpleNamespace(ties=None, has_own=True) for _ in range(2)]

    def steps_of(x, layers, wanted):
        return [np.array([2.5, 4.0]) for _ in wanted]

    def runs(x):
        return [expected, expected], [own, own]

    reasons = ["the order of a float sum", None]
    explain_ties(counts, steps_of, [np.zeros(1, np.float32)], runs, reasons.__getitem__, SILENT)
    assert counts[0].ties is not None
    assert "1 element within" in counts[0].ties.text
    assert "the order of a float sum decides" in counts[0].ties.text
    assert counts[1].ties is None
