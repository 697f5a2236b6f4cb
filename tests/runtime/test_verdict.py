"""Verdicts as text and as JSON."""

from __future__ import annotations

import json

from quantvm.runtime.verdict import MEANING, NOT_ASKED, VERDICTS, Verification


def test_every_verdict_has_a_meaning():
    assert tuple(MEANING) == VERDICTS


def test_the_text_holds_all_figures():
    found = Verification("ties", "of one layer", "PyTorch 2", (1, 3), 4000, 12, 0.25)
    for part in ("ties", "4,000", "1 and 3", "PyTorch 2", "12 differ", "0.25", "of one layer"):
        assert part in found.text
    assert "differ" not in Verification("exact", "all", "PyTorch 2", (1,), 4000).text
    assert "asked" in NOT_ASKED.text


def test_the_row_is_json():
    row = Verification("exact", "all", "PyTorch 2", (1, 2), 10).row()
    assert json.loads(json.dumps(row)) == row
    assert (row["verdict"], row["batch_sizes"], row["n_compared"], row["n_different"]) == ("exact", [1, 2], 10, 0)
