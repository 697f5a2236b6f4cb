"""Quantized PyTorch models on Apache TVM: the same bits, real int8 code, measured on real images.

What the command does is a call here. Everything is imported when it is first used, so that ``import quantvm`` costs
neither torch nor tvm.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from quantvm.errors import missing_package_named

if TYPE_CHECKING:
    from quantvm.data import Dataset, Preprocessing, load_dataset
    from quantvm.errors import QuantvmError
    from quantvm.evaluate.bench import bench
    from quantvm.evaluate.bench_config import BenchConfig
    from quantvm.evaluate.benchmark import evaluate
    from quantvm.evaluate.compile_config import CompileConfig
    from quantvm.evaluate.compiling import compile_to_file
    from quantvm.evaluate.config import RunConfig
    from quantvm.evaluate.tuning import TuneConfig, tune_schedules
    from quantvm.frontend import register_converter
    from quantvm.models import ModelSpec, get_model, list_models
    from quantvm.models.quantize import quantize
    from quantvm.models.weights import build_float_model, resolve_weights
    from quantvm.report.bench_schema import BenchResult
    from quantvm.report.schema import RunResult
    from quantvm.runtime import Artifact, CompileReport, TorchRunner, TvmRunner, audit, load
    from quantvm.verification import compile  # noqa: A004

__all__ = [
    "Artifact",
    "BenchConfig",
    "BenchResult",
    "CompileConfig",
    "CompileReport",
    "Dataset",
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
    "evaluate",
    "get_model",
    "list_models",
    "load",
    "load_dataset",
    "quantize",
    "register_converter",
    "resolve_weights",
    "tune_schedules",
]

_HOME = {
    "Artifact": "quantvm.runtime",
    "BenchConfig": "quantvm.evaluate.bench_config",
    "BenchResult": "quantvm.report.bench_schema",
    "CompileConfig": "quantvm.evaluate.compile_config",
    "CompileReport": "quantvm.runtime",
    "Dataset": "quantvm.data",
    "ModelSpec": "quantvm.models",
    "Preprocessing": "quantvm.data",
    "QuantvmError": "quantvm.errors",
    "RunConfig": "quantvm.evaluate.config",
    "RunResult": "quantvm.report.schema",
    "TorchRunner": "quantvm.runtime",
    "TuneConfig": "quantvm.evaluate.tuning",
    "TvmRunner": "quantvm.runtime",
    "audit": "quantvm.runtime",
    "bench": "quantvm.evaluate.bench",
    "build_float_model": "quantvm.models.weights",
    "compile": "quantvm.verification",
    "compile_to_file": "quantvm.evaluate.compiling",
    "get_model": "quantvm.models",
    "list_models": "quantvm.models",
    "load": "quantvm.runtime",
    "load_dataset": "quantvm.data",
    "quantize": "quantvm.models.quantize",
    "register_converter": "quantvm.frontend",
    "resolve_weights": "quantvm.models.weights",
    "tune_schedules": "quantvm.evaluate.tuning",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("quantvm")
    if name == "evaluate":  # a package that is also the function, see there
        return import_module("quantvm.evaluate")
    if name in _HOME:
        with missing_package_named():
            return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'quantvm' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
