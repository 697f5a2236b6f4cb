"""What is printed for a search for schedules."""

from __future__ import annotations

import re

from quantvm.jobs.tuning.text import tune_lines

SHAPE = {
    "in_height": 14, "in_width": 15, "in_channels": 64, "out_channels": 96,
    "kernel": (3, 5), "stride": (1, 1), "groups": 1,
}  # fmt: skip
SCHEDULE = {"tile_rows": 1, "pixels": 6, "vectors": 2, "row_tasks": 1, "channel_tasks": 1}


def found(model_us: float, us: float, shape: dict | None = None, schedule: dict | None = None) -> dict:
    return {
        "shape": {**SHAPE, **(shape or {})}, "dot": "vnni", "threads": 2, "schedule": {**SCHEDULE, **(schedule or {})},
        "model_time_us": model_us, "time_us": us,
    }  # fmt: skip


def lines(*rows: dict, **more: object) -> list[str]:
    row = {
        "target": "llvm",
        "found": list(rows),
        "gained": 0,
        "searched": len(rows),
        "asked": len(rows),
        "file": "f.json",
    }
    return tune_lines({**row, "kept": 5, **more})


def test_convolutions_that_became_faster_come_first_the_most_gained_on_top():
    text = lines(
        found(12, 10), found(30, 10, {"stride": (2, 2), "groups": 4}, {"tile_rows": 2, "row_tasks": 3}), found(10, 10),
        gained=2,
    )  # fmt: skip
    best, second = text[-6:-4]
    assert re.search(r"14×15×64 → 96, 3×5 stride 2 groups 4 .* 30\.0 +2×6×2, 3 tasks +10\.0 +3\.00×$", best)
    assert re.search(r"14×15×64 → 96, 3×5  .* 12\.0 +6×2 +10\.0 +1\.20×$", second)
    assert "1.733×" in text[-2]  # (12 + 30 + 10) / 30
    assert "f.json (5 records)" in text[-1]


def test_schedules_slower_than_the_models_do_not_count():
    assert "1.000×" in lines(found(10, 20))[-2]


def test_an_interrupted_search_and_one_that_found_nothing():
    text = lines(searched=0, asked=7)
    assert len(text) == 2
    assert "0 convolutions of 7" in text[0]
