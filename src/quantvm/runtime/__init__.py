"""Compiling a quantized model, saving and loading it, and running it: PyTorch and TVM behind one contract."""

from .artifact import Artifact, CompileReport
from .build import compile_model as compile  # noqa: A004 - quantvm.compile is meant
from .code_audit import KernelAudit, audit
from .model_file import load
from .runners import Runner, TorchRunner, TvmRunner

__all__ = ["Artifact", "CompileReport", "KernelAudit", "Runner", "TorchRunner", "TvmRunner", "audit", "compile", "load"]
