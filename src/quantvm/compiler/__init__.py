"""From an imported model to an artifact: build, cache of compiled models, and analysis of compiled code."""

from .build import compile_model as compile  # noqa: A004 - quantvm.compile is meant
from .code_audit import KernelAudit, audit

__all__ = ["KernelAudit", "audit", "compile"]
