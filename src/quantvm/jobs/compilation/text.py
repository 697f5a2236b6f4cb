"""The result of a compilation, and the cache of compiled models, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from quantvm.jobs.compilation.schema import CacheRow, CompileRow, KernelAuditRow
from quantvm.report.table import aligned, bytes_text

_MAIN_INSTRUCTION = "vpdpbusd"


def compile_lines(row: CompileRow) -> list[str]:
    """Returns what is printed for one compilation."""
    lines = list(_facts(row))
    if row["audit"] is not None:
        lines += ["", *audit_table(row["audit"])]
    lines += ["", f"Multiply-adds in int8 kernels: {_share(row['int8_mac_share'])}"]
    if row["float_ops"]:
        lines += ["Left in float:", *(f"  {op['op']}: {op['reason']}" for op in row["float_ops"])]
    else:
        lines += ["Left in float: nothing"]
    return [*lines, f"FAILED: {row['problem']}"] if row["problem"] else lines


def _facts(row: CompileRow) -> Iterator[str]:
    yield f"Model: {row['model']}"
    for kind in ("inputs", "outputs"):
        for spec in row[kind]:
            yield f"{kind.removesuffix('s').capitalize()}: {_tensor(spec)}"
    yield f"Target: {row['target']}, engine {row['engine']}, numerics {row['numerics']}, threads {row['threads']}"
    yield f"Needs: {row['architecture']} {' '.join(row['cpu_features'])}".rstrip()
    times = (
        ("imported in", row["import_s"], 1),
        ("compiled in", row["compile_s"], 1),
        ("taken from the cache in", row["load_s"] if row["cached"] else None, 2),
    )
    told = ", ".join(f"{done} {time_s:.{digits}f} s" for done, time_s, digits in times if time_s is not None)
    yield told[:1].upper() + told[1:]
    yield f"Verified: {row['verification']['text']}"
    if row["file"] is not None:
        size = "" if row["size_bytes"] is None else f" ({bytes_text(row['size_bytes'])}, sha256 {row['sha256']})"
        yield f"Written: {row['file']}{size}"


def _tensor(spec: dict[str, Any]) -> str:
    shape = ", ".join("n" if size is None else str(size) for size in spec["shape"])
    steps = spec["quantization"]
    of = "" if steps is None else f", steps of {steps['scale']:.6g} from zero point {steps['zero_point']}"
    return f"{spec['name']}, {spec['dtype']} ({shape}){of}"


def _share(share: float) -> str:
    # 99.97 % must not read as 100 %: a share is rounded towards what is still missing.
    return "100 %" if share == 1 else f"{int(10000 * share) / 100:.2f} %"


def audit_table(rows: list[KernelAuditRow]) -> list[str]:
    """Returns the dot-product instructions of each function as a table with a total."""
    head = ("function", "kernel", "calls", _MAIN_INSTRUCTION, "other dot instructions")
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["dot_instructions"])
    cells = [
        (row["function"], row["kernel"] or "(of TVM)", str(row["calls"]), *_counts(row["dot_instructions"]))
        for row in rows
    ]
    functions = f"total of {len(rows)} functions"
    last = (functions, "", str(sum(row["calls"] for row in rows)), *_counts(dict(sorted(total.items()))))
    return aligned([head, *cells, last], right=(2, 3))


def _counts(instructions: dict[str, int]) -> tuple[str, str]:
    others = [f"{name} {count}" for name, count in instructions.items() if name != _MAIN_INSTRUCTION]
    return str(instructions.get(_MAIN_INSTRUCTION, 0)), ", ".join(others)


def cache_lines(cache: CacheRow) -> list[str]:
    """Returns the compiled models of the cache as a table, the last used first."""
    entries, total = cache["entries"], cache["total_bytes"]
    models = f"{len(entries)} compiled model{'' if len(entries) == 1 else 's'}"
    summary = f"{models}, {bytes_text(total)} of at most {bytes_text(cache['limit_bytes'])}, in {cache['folder']}"
    if not entries:
        return [summary]
    head = ("key", "size", "last used (UTC)", "input", "engine", "threads", "int8", "target")
    cells = [
        (
            entry["key"][:12],
            bytes_text(entry["size_bytes"]),
            entry["used_at"][:16].replace("T", " "),
            " ".join(entry["inputs"]) if entry["inputs"] else "damaged",
            entry["engine"] or "",
            "" if entry["threads"] is None else str(entry["threads"]),
            "" if entry["int8_mac_share"] is None else _share(entry["int8_mac_share"]),
            entry["target"] or "",
        )
        for entry in entries
    ]
    return [*aligned([head, *cells], right=(1, 5, 6)), summary]
