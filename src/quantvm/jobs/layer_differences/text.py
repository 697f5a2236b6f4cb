"""The comparison of layers as text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from quantvm.jobs.layer_differences.schema import DifferenceRow, DiffRow, FusionRow, LayerRow, WaterfallRow
from quantvm.report.table import aligned

_HEAD = ("#", "layer", "op", "shape", "equal", "off by 1", "max", "SQNR", "cause")
_RULE = "rule "


def diff_lines(row: DiffRow) -> list[str]:
    """Returns what is printed: the layers that differ, the rules that explain them, and the sums."""
    differing = [layer for layer in row["layers"] if layer["cause"] is not None]
    lines = [*_table(differing), ""] if differing else []
    n, images = len(row["layers"]), len(row["images"])
    lines.append(f"{row['actual']} against {row['reference']}: {row['model']}, {images} images, {n} layers")
    if not differing:
        lines.append(f"All {n} layers are equal, {sum(layer['whole']['n'] for layer in row['layers'])} integers")
    else:
        first = differing[0] if row["first"] is None else row["layers"][row["first"]]
        lines.append(
            f"{len(differing)} of {n} layers differ; the first is {first['index']}, {first['name']}: {first['cause']}"
        )
    lines += [_fusion_line(fusion) for fusion in row["fusion"]]
    if row["waterfall"] is not None:
        lines += ["", *_waterfall_lines(row["waterfall"])]
    if row["repro"] is not None:
        lines.append(f"{row['repro']} shows the difference alone: python -m pytest {row['repro']}")
    if row["repro_problem"] is not None:
        lines.append(f"No file shows the difference alone: {row['repro_problem']}")
    return lines


def _table(layers: Sequence[LayerRow]) -> list[str]:
    """Returns a line for each layer, and below each rule in words, once."""
    in_words = list(dict.fromkeys(c for layer in layers if (c := layer["cause"] or "").startswith(_RULE)))
    head = (*_HEAD[:-1], "SQNR to fp32", "cause") if layers[0]["float_sqnr_db"] is not None else _HEAD
    rows = [_cells(layer, in_words) for layer in layers]
    lines = aligned([head, *rows], right={0, 4, 5, 6, 7} | ({8} if len(head) > len(_HEAD) else set()))
    notes = [f"rule {i}: {text.removeprefix(_RULE)}" for i, text in enumerate(in_words, 1)]
    return [*lines, *(["", *notes] if notes else [])]


def _cells(layer: LayerRow, in_words: Sequence[str]) -> tuple[str, ...]:
    whole, cause = layer["whole"], layer["cause"] or ""
    to_float = () if layer["float_sqnr_db"] is None else (_decibels(layer["float_sqnr_db"]),)
    return (
        str(layer["index"]), layer["name"], layer["op"], "×".join(map(str, layer["shape"][1:])),
        _percent(whole["equal"], whole), _percent(whole["off_by_one"], whole), str(whole["max_steps"]),
        _decibels(whole["sqnr_db"]), *to_float,
        f"rule {in_words.index(cause) + 1}" if cause in in_words else cause,
    )  # fmt: skip


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def _percent(count: int, of: DifferenceRow) -> str:
    if count in (0, of["n"]):
        return "0 %" if count == 0 else "100 %"
    # all but one of a million must not be printed as 100 %, nor one of a million as 0 %
    percent = 100 * count / of["n"]
    if percent > 99.99:
        return ">99.99 %"
    return "<0.01 %" if percent < 0.01 else f"{percent:.2f} %"


def _fusion_line(fusion: FusionRow) -> str:
    if fusion["equal"] == fusion["n"]:
        return f"{fusion['side']} fused: all {fusion['n']} raw outputs are those of the layers"
    return (
        f"{fusion['side']} fused: FUSION CHANGES {fusion['n'] - fusion['equal']} of {fusion['n']} raw outputs, "
        f"by up to {fusion['max_abs_diff']:.6g}: a bug, whatever the layers say"
    )


def _waterfall_lines(row: WaterfallRow) -> list[str]:
    head = ("stage", "top-1", "top-5", "SQNR", "cosine", "mean abs diff", "same top-1")
    stages = [
        (
            stage["stage"], f"{stage['top1']:.2f}", f"{stage['top5']:.2f}", _decibels(stage["sqnr_db"]),
            f"{stage['cosine']:.6f}", f"{stage['mean_abs_diff']:.6f}", f"{stage['top1_agreement']:.2f} %",
        )
        for stage in row["stages"]
    ]  # fmt: skip
    losses = [
        (loss["step"], f"{loss['top1']:+.2f}", f"{loss['top5']:+.2f}", f"{loss['outputs_changed']:.2f} %")
        for loss in row["losses"]
    ]
    return [
        f"Waterfall on {row['images']} images, errors against fp32",
        *aligned([head, *stages], right=range(1, 7)),
        "",
        *aligned([("step", "top-1", "top-5", "outputs changed"), *losses], right=range(1, 4)),
    ]


def layers_csv(row: DiffRow) -> str:
    """Returns every layer as a line of CSV, below a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    counts = ("n", "equal", "off_by_one", "max_steps", "sqnr_db")
    writer.writerow([
        "index", "name", "op", "shape", "scale", "zero_point", *counts, *(f"own_{name}" for name in counts),
        "float_sqnr_db", "cause", "reference_rule", "actual_rule",
    ])  # fmt: skip
    for layer in row["layers"]:
        whole, own, rule = layer["whole"], layer["own"], layer["rule"]
        facts = [layer["index"], layer["name"], layer["op"], "x".join(map(str, layer["shape"]))]
        facts += [layer["scale"], layer["zero_point"], *_counts(whole), *([""] * 5 if own is None else _counts(own))]
        rules = ["", ""] if rule is None else [rule["reference"], rule["actual"]]
        writer.writerow([*facts, layer["float_sqnr_db"], layer["cause"] or "", *rules])
    return text.getvalue()


def _counts(row: DifferenceRow) -> list[float | None]:
    return [row["n"], row["equal"], row["off_by_one"], row["max_steps"], row["sqnr_db"]]
