"""What a deployed model needs: saving and loading it, checking that it can run here, and running it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .artifact import Artifact, CompileReport
from .model_file import load

__all__ = ["Artifact", "CompileReport", "load"]

_ELSEWHERE = {
    "KernelAudit": "quantvm.compiler",
    "Runner": "quantvm.workload.runners",
    "TorchRunner": "quantvm.workload.runners",
    "TvmRunner": "quantvm.workload.runners",
    "audit": "quantvm.compiler",
    "compile": "quantvm.compiler",
}
"""Names that have moved to `quantvm.compiler`; a deployed model needs none of them."""


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'quantvm.runtime' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_ELSEWHERE[name]), name)
