"""What compiled code requires of the machine that runs it. Imports tvm only to ask LLVM about a target."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from quantvm.errors import MachineError

from .target import cpu_flags, cpu_model, host_target, target_text

# LLVM's names of the extensions that it generates code for -> Linux's names. Our code needs no others.
_LINUX_NAMES = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt", "lzcnt": "abm",
    "movbe": "movbe", "bmi": "bmi1", "bmi2": "bmi2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c",
    "gfni": "gfni", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
    "avxvnni": "avx_vnni", "avxvnniint8": "avx_vnni_int8", "amx-tile": "amx_tile", "amx-int8": "amx_int8",
    "neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "fullfp16": "asimdhp", "sve": "sve", "sve2": "sve2",
}  # fmt: skip
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Requirements:
    """What a machine must have.

    Attributes:
        architecture: of the processor, such as x86_64.
        cpu_features: extensions by their Linux names.
    """

    architecture: str
    cpu_features: tuple[str, ...]

    def unmet(self) -> str | None:
        """Returns what this machine lacks, as a clause; None if it lacks nothing, as far as the system reports."""
        if self.architecture != this_architecture():
            return f"needs a processor of kind {self.architecture}, and this one is {this_architecture()}"
        flags = cpu_flags()
        missing = [name for name in self.cpu_features if name not in flags]
        if flags and missing:
            return f"needs {', '.join(missing)}, which this CPU ({cpu_model()}) lacks"
        return None

    def check(self, what: str) -> None:
        """Raises MachineError if this machine cannot run the code; `what` names it in the message."""
        problem = self.unmet()
        if problem is not None:
            raise MachineError(f"{what} {problem}; compile the model on this machine, or for a target that it can run")


def this_architecture() -> str:
    """Returns the architecture of this machine's processor, such as x86_64."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def requirements_of(target: Any) -> Requirements:
    """Returns what code for a TVM target needs.

    For this machine's own target, features that the system does not report are left out, since the code runs here.
    """
    from quantvm.kernels.builder import target_features

    wanted = target_features(target)
    names = [linux for llvm, linux in _LINUX_NAMES.items() if llvm in wanted]
    flags = cpu_flags()
    if flags and target_text(target) == host_target():
        names = [name for name in names if name in flags]
    return Requirements(_architecture(target), tuple(names))


def _architecture(target: Any) -> str:
    triple = str(target.attrs.get("mtriple") or "") if hasattr(target.attrs, "get") else ""
    if not triple:
        return this_architecture()
    name = triple.split("-")[0].lower()
    return _ARCHITECTURES.get(name, name)
