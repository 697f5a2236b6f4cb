"""This machine's processor, and the TVM target for it. Imports tvm only to make a target."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantvm.errors import CompileError

_CPUINFO = Path("/proc/cpuinfo")
_RELEVANT = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_vnni",
    "avx_vnni", "avx_vnni_int8", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What a model is compiled for.

    Attributes:
        target: native, or a TVM target like `llvm -mcpu=cascadelake`.
        threads: of TVM's pool; also the PyTorch thread count whose results are reproduced.
    """

    target: str
    threads: int


@lru_cache(maxsize=1)
def _cpuinfo() -> tuple[dict[str, str], ...]:
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    blocks = [block for block in text.split("\n\n") if block.strip()]
    rows = [dict(_field(line) for line in block.splitlines() if ":" in line) for block in blocks]
    return tuple(rows)


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def cpu_model() -> str:
    """Returns the processor's name as the system gives it."""
    for row in _cpuinfo():
        if "model name" in row:
            return row["model name"]
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Returns the instruction set extensions that matter to int8 code, by their Linux names."""
    found = cpu_flags()
    return tuple(name for name in _RELEVANT if name in found)


def cpu_flags() -> frozenset[str]:
    """Returns all extensions that the system reports, by their Linux names; empty where it reports nothing."""
    found: set[str] = set()
    for row in _cpuinfo():
        found |= set((row.get("flags") or row.get("Features") or "").split())
    return frozenset(found)


def physical_cores() -> int:
    """Returns the number of physical cores that this process may use, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {
        (row.get("physical id", "0"), row.get("core id", row.get("processor")))
        for row in _cpuinfo()
        if row.get("processor", "").isdigit() and int(row["processor"]) in allowed
    }
    return len(cores) or len(allowed) or 1


def host_target() -> str:
    """Returns the TVM target of this machine, e.g. `llvm -mcpu=znver5`."""
    from quantvm.tvm_compat import native_target

    return target_text(native_target())


def target_text(target: Any) -> str:
    """Returns a TVM target as text that `parse_target` takes."""
    parts = [str(target.kind.name)]
    for name in ("mtriple", "mcpu", "mattr"):
        value = target.attrs.get(name) if hasattr(target.attrs, "get") else None
        if value:
            parts.append(f"-{name}={value if isinstance(value, str) else ','.join(str(v) for v in value)}")
    return " ".join(parts)


def parse_target(text: str) -> Any:
    """Returns the TVM target for `native` or for options like `llvm -mcpu=skylake-avx512 -mattr=+avx512vnni`.

    Raises:
        CompileError: not an LLVM target, an unknown option, or a CPU that LLVM does not know.
    """
    from quantvm.tvm_compat import make_target, native_target

    if text == "native":
        return native_target()
    kind, *options = text.split() or [""]
    if kind != "llvm":
        raise CompileError(
            f"target {text!r} is of kind {kind!r}; expected 'native' or 'llvm -mcpu=NAME [-mattr=+a,-b]'"
        )
    known = {"-mcpu", "-mattr", "-mtriple"}
    pairs = [option.partition("=") for option in options]
    wrong = [
        option for option, (name, equals, value) in zip(options, pairs, strict=True) if name not in known or not value
    ]
    if wrong:
        raise CompileError(
            f"target {text!r} has unknown options {', '.join(wrong)}; expected {', '.join(sorted(known))}"
        )
    return make_target({name.removeprefix("-"): value for name, _, value in pairs})
