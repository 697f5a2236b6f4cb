"""The comparison of layers as text and as CSV."""

from __future__ import annotations

import csv
import io

from quantvm.report.diff_schema import DifferenceRow, DiffRow, LayerRow
from quantvm.report.table import aligned

_HEAD = ("#", "layer", "op", "shape", "equal", "off by 1", "max", "SQNR", "cause")


def diff_lines(row: DiffRow) -> list[str]:
    """Returns what is printed: the layers that differ, and the sums."""
    lines = []
    differing = [layer for layer in row["layers"] if layer["cause"] is not None]
    if differing:
        lines += [*aligned([_HEAD, *map(_cells, differing)], right={0, 4, 5, 6, 7}), ""]
    n, images = len(row["layers"]), len(row["images"])
    lines.append(f"{row['actual']} against {row['reference']}: {row['model']}, {images} images, {n} layers")
    first = row["first"]
    if first is None:
        lines.append(f"All {n} layers are equal, {sum(layer['whole']['n'] for layer in row['layers'])} integers")
    else:
        layer = row["layers"][first]
        lines.append(
            f"{row['n_differing']} of {n} layers differ; the first is {first}, {layer['name']}: {layer['cause']}"
        )
    return lines


def _cells(layer: LayerRow) -> tuple[str, ...]:
    whole = layer["whole"]
    return (
        str(layer["index"]), layer["name"], layer["op"], "×".join(map(str, layer["shape"][1:])),
        _percent(whole["equal"], whole), _percent(whole["off_by_one"], whole), str(whole["max_steps"]),
        "" if whole["sqnr_db"] is None else f"{whole['sqnr_db']:.1f} dB", layer["cause"] or "",
    )  # fmt: skip


def _percent(count: int, of: DifferenceRow) -> str:
    # all but one of a million must not read as 100 %
    return "100 %" if count == of["n"] else f"{int(10000 * count / of['n']) / 100:.2f} %"


def layers_csv(row: DiffRow) -> str:
    """Returns every layer as a line of CSV, under a line of names."""
    text = io.StringIO()
    writer = csv.writer(text)
    counts = ("n", "equal", "off_by_one", "max_steps", "sqnr_db")
    writer.writerow(
        ["index", "name", "op", "shape", "scale", "zero_point", *counts, *(f"own_{name}" for name in counts), "cause"]
    )
    for layer in row["layers"]:
        whole, own = layer["whole"], layer["own"]
        facts = [layer["index"], layer["name"], layer["op"], "x".join(map(str, layer["shape"]))]
        facts += [layer["scale"], layer["zero_point"]]
        writer.writerow([*facts, *_counts(whole), *([""] * 5 if own is None else _counts(own)), layer["cause"] or ""])
    return text.getvalue()


def _counts(row: DifferenceRow) -> list[float | None]:
    return [row["n"], row["equal"], row["off_by_one"], row["max_steps"], row["sqnr_db"]]
