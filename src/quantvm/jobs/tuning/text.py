"""The result of a search for schedules as text."""

from __future__ import annotations

from typing import Any

from quantvm.jobs.tuning.schema import TunedRow, TuneRow
from quantvm.report.table import aligned

_HEAD = ("convolution", "dot", "threads", "model µs", "tile", "µs", "gain")


def tune_lines(row: TuneRow) -> list[str]:
    """Returns what is printed for one search: the convolutions that became faster, the most first, and the sums."""
    lines = []
    faster = sorted(row["found"], key=_gain, reverse=True)[: row["gained"]]
    if faster:
        lines += [*aligned([_HEAD, *map(_cells, faster)], right={2, 3, 5, 6}), ""]
    model_us = sum(found["model_time_us"] for found in row["found"])
    time_us = sum(min(found["time_us"], found["model_time_us"]) for found in row["found"])
    stopped = "" if row["searched"] == row["asked"] else f" of {row['asked']}, then interrupted"
    lines.append(f"Searched: {row['searched']} convolutions{stopped}, target {row['target']}")
    if model_us:
        faster_by = f"all together they are {model_us / time_us:.3f}× as fast"
        lines.append(f"Faster than the cost model's choice by more than the noise: {row['gained']}; {faster_by}")
    lines.append(f"Written: {row['file']} ({row['kept']} records)")
    return lines


def _gain(found: TunedRow) -> float:
    return found["model_time_us"] / found["time_us"]


def _cells(found: TunedRow) -> tuple[str, ...]:
    return (
        _shape(found["shape"]), found["dot"], str(found["threads"]), f"{found['model_time_us']:.1f}",
        _tile(found["schedule"]), f"{found['time_us']:.1f}", f"{_gain(found):.2f}×",
    )  # fmt: skip


def _shape(shape: dict[str, Any]) -> str:
    kernel, stride = shape["kernel"], shape["stride"]
    text = f"{shape['in_height']}×{shape['in_width']}×{shape['in_channels']} → {shape['out_channels']}"
    text += f", {kernel[0]}×{kernel[1]}"
    text += f" stride {stride[0]}" if tuple(stride) != (1, 1) else ""
    return text + (f" groups {shape['groups']}" if shape["groups"] > 1 else "")


def _tile(schedule: dict[str, int]) -> str:
    rows = f"{schedule['tile_rows']}×" if schedule["tile_rows"] > 1 else ""
    tasks = schedule["row_tasks"] * schedule["channel_tasks"]
    return f"{rows}{schedule['pixels']}×{schedule['vectors']}" + (f", {tasks} tasks" if tasks > 1 else "")
