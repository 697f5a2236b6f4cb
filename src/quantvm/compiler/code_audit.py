"""Counts the dot-product instructions in the machine code of each kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from quantvm.errors import ConfigError
from quantvm.runtime.artifact import Artifact

from .build import BuiltLibrary

DOT_INSTRUCTIONS = frozenset({
    "vpdpbusd", "vpdpbusds", "vpdpbssd", "vpdpbssds", "vpdpbsud", "vpdpbuud", "vpdpwssd", "vpdpwssds", "vpdpwusd",
    "vpmaddwd", "vpmaddubsw", "pmaddwd", "pmaddubsw", "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud",
    "sdot", "udot", "usdot", "sudot", "smmla", "ummla", "usmmla",
})  # fmt: skip
"""Instructions of x86 and Arm that multiply 8- or 16-bit integers and add products."""

_SYMBOL_PREFIX = "__tvm_ffi_"
_FUNCTION = re.compile(r"^\s*\.type\s+([^,\s]+),\s*[@%]function")
_LABEL = re.compile(r"^([^\s:]+):")
_INSTRUCTION = re.compile(r"^\s+(?:\{\w+\}\s+)?([a-z]\w*)(?:\s+(.*))?$")
_WORD = re.compile(r"[\w.$]+")


@dataclass(frozen=True)
class KernelAudit:
    """One function of the compiled code.

    Attributes:
        function: its name.
        kernel: its int8 kernel; None for a function of TVM, for an operator left in float or to move data.
        calls: how often a run calls it.
        dot_instructions: how many of each kind its code contains; loop bodies count once.
    """

    function: str
    kernel: str | None
    calls: int
    dot_instructions: dict[str, int]


def audit(artifact: Artifact) -> tuple[KernelAudit, ...]:
    """Returns the audit of every function, in the order of their names.

    Raises:
        ConfigError: the artifact was loaded from a file, which holds no assembly.
    """
    from quantvm.tvm_compat import assembly, called_functions

    library = artifact.library
    if not isinstance(library, BuiltLibrary):
        raise ConfigError("audit: this artifact was loaded from a file; compile the model with cache=False")
    calls = called_functions(library.executable)
    counts = dot_instructions(assembly(library.executable))
    return tuple(
        KernelAudit(name, library.kernel_of[name], calls[name], dict(sorted(counts[name].items())))
        for name in sorted(counts, key=_natural_order)
        if name in library.kernel_of  # the others compute shapes
    )


def dot_instructions(assembly: str) -> dict[str, Counter[str]]:
    """Returns the dot-product instructions of each of TVM's functions, including those of their parallel parts.

    Args:
        assembly: as LLVM prints it for ELF.
    """
    counts, uses = _bodies(assembly.splitlines())
    return {
        name.removeprefix(_SYMBOL_PREFIX): sum((counts[part] for part in _local_functions_of(name, uses)), Counter())
        for name in counts
        if name.startswith(_SYMBOL_PREFIX)
    }


def _bodies(lines: Iterable[str]) -> tuple[dict[str, Counter[str]], dict[str, set[str]]]:
    """Returns for each function its dot-product instructions and the names that its instructions mention."""
    counts: dict[str, Counter[str]] = {}
    uses: dict[str, set[str]] = {}
    announced: set[str] = set()
    current = None
    for line in lines:
        if found := _FUNCTION.match(line):
            announced.add(found[1])
        elif (found := _LABEL.match(line)) and found[1] in announced:
            current = found[1]
            counts[current], uses[current] = Counter(), set()
        elif current is not None and (found := _INSTRUCTION.match(line)):
            if found[1] in DOT_INSTRUCTIONS:
                counts[current][found[1]] += 1
            elif found[2]:
                uses[current].update(_WORD.findall(found[2]))
    return counts, uses


def _local_functions_of(name: str, uses: dict[str, set[str]]) -> set[str]:
    """Returns the function and the local functions that it reaches; other functions of TVM have their own rows."""
    reached, left = {name}, [name]
    while left:
        found = {used for used in uses[left.pop()] if used in uses and not used.startswith(_SYMBOL_PREFIX)}
        left += found - reached
        reached |= found
    return reached


def _natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Returns a key that sorts conv2d2 before conv2d10."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)
