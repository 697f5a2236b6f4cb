"""A profile of TVM's code as text: every kernel call in order of execution, the kernels' sums, and the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantvm.jobs.latency.schema import ProfileCallRow, ProfileRow

WIDTH = 100
"""Columns of a line; layers' names are cut to fit."""

_GAP = "  "
_CALL_HEAD = ("layer", "op", "shape", "kernel", "ms", "share", "TOPS")
_SUM_HEAD = ("kernel", "calls", "ms", "share", "TOPS")


def profile_lines(profile: ProfileRow) -> list[str]:
    """Returns the tables of one profile, at most WIDTH columns wide, and how it was measured."""
    total_ms = profile["total_ms"]
    calls = [
        (
            call["layer"] if call["layer"] != call["op"] else "", call["op"], _shapes(call), _variant(call),
            *_figures(call["p50_ms"], total_ms, call["macs"]),
        )
        for call in profile["calls"]
    ]  # fmt: skip
    return [
        *_table([_CALL_HEAD, *calls], texts=4),
        "",
        *_table([_SUM_HEAD, *_sums(profile)], texts=1),
        "",
        *_method_lines(profile),
    ]


def _short(kernel: str) -> str:
    """Returns a kernel's name without the dtypes that all contractions have."""
    return kernel.replace("_u8i8acc32", "")


def _variant(call: ProfileCallRow) -> str:
    """Returns the part of a kernel's name that the operator does not say."""
    return _short(call["kernel"]).replace(call["op"] + "_", "", 1) or "float"


def _figures(ms: float, total_ms: float, macs: int) -> tuple[str, str, str]:
    tops = f"{2 * macs / ms / 1e9:.2f}" if macs and ms > 0 else ""
    return f"{ms:.3f}", f"{100 * ms / total_ms:.1f} %", tops


def _sums(profile: ProfileRow) -> list[tuple[str, ...]]:
    """Returns a row for each kernel, the slowest first, then the time outside of kernels, then the total."""
    total_ms = profile["total_ms"]
    groups: dict[str, list[ProfileCallRow]] = {}
    for call in profile["calls"]:
        groups.setdefault(_short(call["kernel"]) or f"float {call['op']}", []).append(call)
    sums = [
        (name, len(calls), sum(call["p50_ms"] for call in calls), sum(call["macs"] for call in calls))
        for name, calls in groups.items()
    ]
    sums.sort(key=lambda row: -row[2])
    rows = [(name, str(n), *_figures(ms, total_ms, macs)) for name, n, ms, macs in sums]
    rest_ms = total_ms - profile["kernels_ms"] + profile["hook_ms"]
    macs = sum(call["macs"] for call in profile["calls"])
    return [
        *rows,
        ("instrumentation, in the above", "", *_figures(-profile["hook_ms"], total_ms, 0)),
        ("the rest: Relax VM, allocation", "", *_figures(rest_ms, total_ms, 0)),
        ("total, without instrumentation", str(len(profile["calls"])), *_figures(total_ms, total_ms, macs)),
    ]


def _method_lines(profile: ProfileRow) -> Iterable[str]:
    each_us = 1e3 * profile["hook_ms"] / max(len(profile["calls"]), 1)
    yield f"- Medians of {profile['n']} runs; as many without instrumentation alternate with them, for the total"
    yield f"- A call's time holds about {each_us:.1f} µs of instrumentation: what a call that does nothing takes"
    yield f"- With instrumentation, which slows every step of the VM, a run takes {profile['instrumented_ms']:.3f} ms"
    yield "- TOPS: 2 × 8-bit multiply-adds / time; a shape is without the batch, in TVM's memory order"


def _shapes(call: ProfileCallRow) -> str:
    first = _item(call["in_shapes"][0]) if call["in_shapes"] else ""
    return f"{first} → {_item(call['out_shape'])}"


def _item(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape[1:] or shape))


def _table(rows: Sequence[Sequence[str]], *, texts: int) -> list[str]:
    """Returns aligned lines; the first `texts` columns are flush left, and the first is cut if needed."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
    widths[0] = min(widths[0], max(WIDTH - others, len("layer")))
    lines = []
    for row in rows:
        cells = [_cut(row[0], widths[0]), *row[1:]]
        aligned = [
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(_GAP.join(aligned).rstrip())
    lines.insert(1, _GAP.join("-" * width for width in widths))
    return lines


def _cut(text: str, width: int) -> str:
    """Returns the end of a text that is too long: layers' names differ there."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
