"""Quantized PyTorch models on Apache TVM: the same bits, real int8 code, measured on real images.

Each command is a function here. Everything is imported when it is first used, so ``import quantvm`` imports neither
torch nor tvm.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from quantvm.errors import missing_package_named

if TYPE_CHECKING:
    from quantvm.api import bench, diff, evaluate, tune
    from quantvm.compiler import audit
    from quantvm.data import Dataset, Preprocessing, load_dataset
    from quantvm.errors import QuantvmError
    from quantvm.frontend import register_converter
    from quantvm.jobs.compilation.compile_to_file import compile_to_file
    from quantvm.jobs.compilation.config import CompileConfig
    from quantvm.jobs.evaluation.config import RunConfig
    from quantvm.jobs.evaluation.schema import RunResult
    from quantvm.jobs.latency.config import BenchConfig
    from quantvm.jobs.latency.schema import BenchResult
    from quantvm.jobs.layer_differences.config import DiffConfig
    from quantvm.jobs.layer_differences.schema import DiffResult
    from quantvm.jobs.tuning.config import TuneConfig
    from quantvm.jobs.tuning.tune import tune_schedules
    from quantvm.models import ModelSpec, get_model, list_models
    from quantvm.models.quantize import quantize
    from quantvm.models.weights import build_float_model, resolve_weights
    from quantvm.runtime import Artifact, CompileReport, load
    from quantvm.verification import compile  # noqa: A004
    from quantvm.workload.runners import TorchRunner, TvmRunner

__all__ = [
    "Artifact",
    "BenchConfig",
    "BenchResult",
    "CompileConfig",
    "CompileReport",
    "Dataset",
    "DiffConfig",
    "DiffResult",
    "ModelSpec",
    "Preprocessing",
    "QuantvmError",
    "RunConfig",
    "RunResult",
    "TorchRunner",
    "TuneConfig",
    "TvmRunner",
    "__version__",
    "audit",
    "bench",
    "build_float_model",
    "compile",
    "compile_to_file",
    "diff",
    "evaluate",
    "get_model",
    "list_models",
    "load",
    "load_dataset",
    "quantize",
    "register_converter",
    "resolve_weights",
    "tune",
    "tune_schedules",
]

_HOME = {
    "Artifact": "quantvm.runtime",
    "BenchConfig": "quantvm.jobs.latency.config",
    "BenchResult": "quantvm.jobs.latency.schema",
    "CompileConfig": "quantvm.jobs.compilation.config",
    "CompileReport": "quantvm.runtime",
    "Dataset": "quantvm.data",
    "DiffConfig": "quantvm.jobs.layer_differences.config",
    "DiffResult": "quantvm.jobs.layer_differences.schema",
    "ModelSpec": "quantvm.models",
    "Preprocessing": "quantvm.data",
    "QuantvmError": "quantvm.errors",
    "RunConfig": "quantvm.jobs.evaluation.config",
    "RunResult": "quantvm.jobs.evaluation.schema",
    "TorchRunner": "quantvm.workload.runners",
    "TuneConfig": "quantvm.jobs.tuning.config",
    "TvmRunner": "quantvm.workload.runners",
    "audit": "quantvm.compiler",
    "bench": "quantvm.api",
    "build_float_model": "quantvm.models.weights",
    "compile": "quantvm.verification",
    "compile_to_file": "quantvm.jobs.compilation.compile_to_file",
    "diff": "quantvm.api",
    "evaluate": "quantvm.api",
    "get_model": "quantvm.models",
    "list_models": "quantvm.models",
    "load": "quantvm.runtime",
    "load_dataset": "quantvm.data",
    "quantize": "quantvm.models.quantize",
    "register_converter": "quantvm.frontend",
    "resolve_weights": "quantvm.models.weights",
    "tune": "quantvm.api",
    "tune_schedules": "quantvm.jobs.tuning.tune",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("quantvm")
    if name in _HOME:
        with missing_package_named():
            return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'quantvm' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
