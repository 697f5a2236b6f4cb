"""What ``quantvm compile --json`` and ``quantvm cache list --json`` print. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_OK, CompiledRow


class FloatOpRow(TypedDict):
    """An operator that was left in float."""

    op: str
    reason: str


class KernelAuditRow(TypedDict):
    """One function of the compiled code."""

    function: str
    kernel: str | None  # None: a function of TVM, for an operator left in float or to move data
    calls: int  # in one run of the model
    dot_instructions: dict[str, int]  # in its code, loops counted once


class VerificationRow(TypedDict):
    """How the code's outputs compare with the reference's."""

    verdict: str  # exact, ties, bound, degenerate, lowering only, not run
    reason: str
    reference: str | None  # with its version
    batch_sizes: list[int]
    n_compared: int
    n_different: int
    max_difference: float
    text: str  # all that as a sentence


class CompileRow(CompiledRow):
    """The result of one compilation."""

    schema_version: int
    model: str
    file: str | None  # None: nothing was to be written
    size_bytes: int | None
    sha256: str | None
    architecture: str
    cpu_features: list[str]  # those that the code needs, by their Linux names
    numerics: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    int8_mac_share: float  # 0..1
    float_ops: list[FloatOpRow]
    kernels: dict[str, int]
    import_s: float | None
    compile_s: float | None  # None where `cached` says that it was compiled earlier
    cached: bool
    load_s: float | None
    verification: VerificationRow
    audit: list[KernelAuditRow] | None  # None: not asked for
    problem: str | None  # why the check that was asked for failed


@dataclass(frozen=True)
class CompileResult:
    """The result of one compilation: ``row`` is what --json prints."""

    row: CompileRow

    @property
    def exit_code(self) -> int:
        """The process exit code: 1 if the check that was asked for failed, else 0."""
        return EXIT_CHECK_FAILED if self.row["problem"] else EXIT_OK


class CacheEntryRow(TypedDict):
    """One compiled model of the cache; the contents of a damaged one are None."""

    key: str
    path: str
    size_bytes: int
    used_at: str  # ISO 8601, UTC
    target: str | None
    engine: str | None
    threads: int | None
    inputs: list[str] | None
    int8_mac_share: float | None


class CacheRow(TypedDict):
    """The cache of compiled models."""

    folder: str
    limit_bytes: int
    total_bytes: int
    entries: list[CacheEntryRow]
