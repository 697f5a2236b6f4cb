"""Latency as text: a Markdown table for each setting, why cells are empty, and the conditions.

Everything is made from bench.json alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quantvm.jobs.latency.profile_text import profile_lines
from quantvm.jobs.latency.schema import BenchModelRow, BenchRow, EngineRow, MeanRow

_MIB = 2**20
_UNLIKE_FLOAT = 0.9
"""If the cosine with the float model's outputs is below this, the engine hardly computes the same network."""


def bench_lines(bench: BenchRow) -> list[str]:
    """Returns what is printed: notices, the tables of each setting, profiles, remarks and conditions."""
    lines = _notices(bench)
    for mean in bench["means"]:
        lines += [*_setting(bench, mean), ""]
    for model in bench["models"]:
        if model["profile"] is not None:
            where = f"batch {model['batch']}, {_threads(model['threads'])}"
            lines += [f"Where TVM's time goes: {_title(model)}, {where}", "", "```"]
            lines += [*profile_lines(model["profile"]), "```", ""]
    remarked = _remarks(bench)
    return [*lines, *([*remarked, ""] if remarked else []), *_conditions(bench)]


def _title(model: BenchModelRow) -> str:
    return model["title"] if model["flow"] == "eager" else f"{model['title']} ({model['flow']})"


def bench_report(bench: BenchRow) -> str:
    """Returns report.md: what is printed, and every figure of every engine."""
    lines = ["# Latency of int8 engines", "", f"`{bench['command']}`, {bench['started_at']}", "", *bench_lines(bench)]
    for model in bench["models"]:
        lines += ["", f"## {_title(model)}, batch {model['batch']}, {_threads(model['threads'])}", ""]
        lines += _details(model)
    return "\n".join(lines) + "\n"


def _notices(bench: BenchRow) -> list[str]:
    found = []
    if bench["interrupted"]:
        found += ["INTERRUPTED: what follows is a part of the benchmark.", ""]
    if bench["config"]["weights"] == "random":
        found += ["RANDOM WEIGHTS: the outputs mean nothing; the time hardly depends on the weights.", ""]
    return found


def _setting(bench: BenchRow, mean: MeanRow) -> Iterator[str]:
    models = [m for m in bench["models"] if (m["batch"], m["threads"]) == (mean["batch"], mean["threads"])]
    where = f"Batch {mean['batch']}, {_threads(mean['threads'])}"
    yield f"{where}: p50 in ms"
    yield ""
    yield from _table(bench, models, lambda row: _ms(row["p50_ms"], "~" if row["spread_warning"] else ""), mean)
    yield ""
    yield f"{where}: images per second, at p50"
    yield ""
    yield from _table(bench, models, lambda row: "" if not row["images_per_s"] else f"{row['images_per_s']:.0f}", None)


def _table(
    bench: BenchRow, models: list[BenchModelRow], cell: Callable[[EngineRow], str], mean: MeanRow | None
) -> Iterator[str]:
    names = bench["config"]["engines"]
    ratio = mean is not None and "tvm" in names
    columns = ["model", *names, *(["tvm_vs_best"] if ratio else [])]
    yield _line(columns)
    yield _line(["---", *["---:"] * (len(columns) - 1)])
    for model in models:
        cells = [cell(model["engines"][name]) for name in names]
        yield _line([_title(model), *cells, *([_ratio(model["tvm_vs_best"])] if ratio else [])])
    if ratio and mean is not None and mean["tvm_vs_best"] is not None:
        yield _line(["geometric mean", *[""] * len(names), _ratio(mean["tvm_vs_best"])])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ms(value: float | None, suffix: str = "") -> str:
    return "" if value is None else f"{value:.2f}{suffix}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _remarks(bench: BenchRow) -> list[str]:
    """Returns a Markdown list of why cells are empty and which numbers are not to be trusted."""
    settings_of: dict[str, list[str]] = {}
    for model in bench["models"]:
        setting = f"{_title(model)} (batch {model['batch']}, {_threads(model['threads'])})"
        for name, row in model["engines"].items():
            for remark in _engine_remarks(row, bench["config"]["weights"] == "random"):
                settings_of.setdefault(f"{name}: {remark}", []).append(setting)
    n = len(bench["models"])
    lines = [f"- {remark}" + (f" [{'; '.join(of)}]" if len(of) < n else "") for remark, of in settings_of.items()]
    lines += _spread_remarks(bench)
    for left in bench["skipped"]:
        remedy = f" {left['remedy']}" if left["remedy"] else ""
        lines.append(f"- {left['title']}, {left['status']}: {' '.join(left['reason'].split())}.{remedy}")
    return lines


def _spread_remarks(bench: BenchRow) -> Iterator[str]:
    """Yields how many measurements are too noisy, and the worst of them."""
    rows = [(model, name, row) for model in bench["models"] for name, row in model["engines"].items()]
    noisy = [(row["spread"] or 0, model, name) for model, name, row in rows if row["spread_warning"]]
    if noisy:
        spread, model, name = max(noisy, key=lambda item: item[0])
        worst = f"{name} on {_title(model)}, batch {model['batch']}, {_threads(model['threads'])}"
        n = sum(row["p50_ms"] is not None for _, _, row in rows)
        yield (
            f"- ~ marks a noisy time, its interquartile range above 10 % of the median: {len(noisy)} of {n} are, most "
            f"of all {worst} with {100 * spread:.0f} %. Something else may have used the cores"
        )


def _engine_remarks(row: EngineRow, random_weights: bool) -> Iterator[str]:
    if row["reason"]:
        yield f"{row['status']}: {row['reason']}"
    cosine = row["cosine_to_float"]
    # Random weights lose much by quantization: their cosine says nothing about the engine.
    if row["p50_ms"] is not None and not random_weights and (cosine is None or cosine < _UNLIKE_FLOAT):
        yield "its outputs are far from the float model's (cosine below 0.9), so its time may mean nothing"


def _conditions(bench: BenchRow) -> Iterator[str]:
    config, environment, dataset = bench["config"], bench["environment"], bench["dataset"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    cpu = environment["cpu"]
    load = ", ".join(f"{value:.2f}" for value in bench["load_average"]) or "unknown"
    yield "- tvm_vs_best: p50 of the best other engine over TVM's; above 1, TVM is faster"
    if bench["reference"] is not None:
        measured = [m["engines"]["tvm"] for m in bench["models"] if m["engines"]["tvm"]["p50_ms"] is not None]
        total = sum(row["outputs_total"] or 0 for row in measured)
        identical = sum(row["outputs_identical"] or 0 for row in measured)
        if identical == total:
            yield f"- Parity: every TVM time is of code whose {total} raw outputs have the bits of {bench['reference']}"
        else:
            loss = max(row["compiling_loss"] or 0.0 for row in measured)
            yield (
                f"- Parity: {identical} of TVM's {total} raw outputs have the bits of {bench['reference']}; at most, "
                f"compiling moved a model's outputs {loss:.2g} times as far as quantizing had. Where PyTorch sums "
                "floats, in an order of its own, what ends next to a tie may be rounded otherwise: quantvm diff counts "
                "those, layer by layer"
            )
    yield (
        f"- Each engine in a process of its own; at least {config['rounds']} alternating rounds and "
        f"{config['seconds']:g} s of calls; the same input bytes; warm-up and first call apart"
    )
    yield (
        f"- Input from {dataset['name']}; {config['scheme']}; TVM target {config['target']}; "
        f"weights: {', '.join(sorted({m['weights']['source'] for m in bench['models']})) or 'none'}"
    )
    yield f"- Versions: {versions}"
    yield f"- CPU: {cpu['model']}, {cpu['physical_cores']} cores; {' '.join(cpu['features'])}"
    yield f"- Load average of the machine, before and after: {load}"
    yield f"- {bench['started_at']}; commit {environment['git'] or 'unknown'}; duration {bench['duration_s']:.0f} s"


_DETAILS: tuple[tuple[str, Callable[[EngineRow], str]], ...] = (
    ("p50 ms", lambda row: _ms(row["p50_ms"])),
    ("p90 ms", lambda row: _ms(row["p90_ms"])),
    ("p99 ms", lambda row: _ms(row["p99_ms"])),
    ("min ms", lambda row: _ms(row["min_ms"])),
    ("n", lambda row: str(row["n"])),
    ("spread", lambda row: "" if row["spread"] is None else f"{100 * row['spread']:.1f} %"),
    ("first call ms", lambda row: _ms(row["first_call_ms"])),
    ("build s", lambda row: _ms(row["build_s"])),
    ("import s", lambda row: _ms(row["import_s"])),
    ("compile s", lambda row: _ms(row["compile_s"])),
    ("load s", lambda row: _ms(row["load_s"])),
    ("file MiB", lambda row: _mib(row["artifact_bytes"])),
    ("peak MiB", lambda row: _mib(row["peak_rss_bytes"])),
    ("inference peak MiB", lambda row: _mib(row["inference_peak_rss_bytes"])),
    ("cosine to float", lambda row: "" if row["cosine_to_float"] is None else f"{row['cosine_to_float']:.4f}"),
)


def _details(model: BenchModelRow) -> Iterator[str]:
    yield _line(["engine", *(title for title, _ in _DETAILS)])
    yield _line(["---", *["---:"] * len(_DETAILS)])
    for name, row in model["engines"].items():
        yield _line([name, *(text(row) for _, text in _DETAILS)])


def _mib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / _MIB:.0f}"
