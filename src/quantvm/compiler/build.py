"""From a quantized program to an Artifact: import, lower and generate code, or take the code from the cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import CompileError, ConfigError, OutputError, missing_package_named, stage
from quantvm.progress import SILENT, Progress
from quantvm.qdq.attributes import engine_of, kernel_name
from quantvm.runtime.artifact import Artifact, CompileReport
from quantvm.runtime.requirements import requirements_of
from quantvm.runtime.signature import signature_of
from quantvm.runtime.target import parse_target, target_text
from quantvm.storage.scratch import scratch_folder

from .cache import CompileCache, chosen_cache

if TYPE_CHECKING:
    from quantvm.lowering import LoweringOptions


class BuiltLibrary:
    """Code that was compiled in this process. LLVM generates it once, for the first `start` or `write`.

    Args:
        executable: Relax VM executable.
        kernel_of: the int8 kernel of each function of the code; None for TVM's own functions.
    """

    def __init__(self, executable: Any, kernel_of: Mapping[str, str | None]) -> None:
        self.executable, self.kernel_of = executable, dict(kernel_of)
        self._objects: list[bytes] | None = None
        self._vm: Any = None

    def start(self) -> Any:
        """Returns the model's main function, in the library that `write` would write.

        Where that cannot be linked or loaded, LLVM generates the code in memory, and once more for a later `write`.
        """
        from quantvm.tvm_compat import copied, start_vm

        self._vm = start_vm(self._linked() or copied(self.executable))
        return self._vm["main"]

    def _linked(self) -> Any:
        """Returns the loaded library; None if there is no linker, no room, or the system refuses to load it."""
        from quantvm.tvm_compat import load_library

        with suppress(CompileError, OutputError, OSError), scratch_folder("start") as folder:
            library = folder / "model.so"
            self.write(library)
            return load_library(library)
        return None

    def write(self, path: Path) -> None:
        """Writes the code as a shared library."""
        from quantvm.tvm_compat import code_objects, find_linker, write_library

        linker = find_linker()  # before code is generated for it
        if self._objects is None:
            self._objects = code_objects(self.executable, path.parent)
        write_library(self.executable, self._objects, linker, path)


@missing_package_named()
def compile_model(
    model_or_path: Any,
    example_inputs: Any = None,
    *,
    numerics: str | None = None,
    engine: str | None = None,
    target: str = "native",
    batch: str = "dynamic",
    threads: int | None = None,
    cache: bool = True,
    progress: Progress = SILENT,
) -> Artifact:
    """Returns the quantized model compiled to int8 code, without verifying it as `quantvm.compile` does.

    Args:
        model_or_path: an eager-quantized `nn.Module`, a traced module, an exported program, or the path of a saved one:
            TorchScript (.pt), `torch.export` (.pt2), ONNX (.onnx) or TFLite (.tflite).
        example_inputs: one float32 NumPy or torch array (N, 3, H, W), or a sequence of them. It may be left out where
            the program says its shapes: exported ones, ONNX and TFLite.
        numerics: torch: the same bits as the PyTorch engine that the model was quantized for. integer: no float between
            quantize and dequantize, near PyTorch's outputs; integer:to_even and integer:away round ties otherwise.
            qdq: dequantize, operate and quantize in float32, as exported programs, ONNX and TFLite define themselves.
            None: qdq for these, torch for the others.
        engine: the PyTorch engine; by default that of the model, else `torch.backends.quantized.engine`.
        target: native, or a TVM target like `llvm -mcpu=cascadelake`.
        batch: dynamic: any number of images; static: that of the example.
        threads: PyTorch's thread count, which places the scalar tails of its element-wise kernels; by default
            `torch.get_num_threads()`.
        cache: take the code from the user's cache if it was compiled before, else keep it there. The key covers
            everything that the code depends on. Needs a C++ linker; without one the model is compiled but not kept, and
            `progress` shows why.
        progress: where a long compilation reports to.

    Raises:
        ConfigError: a wrong option.
        ModelImportError, UnsupportedOpError: the model cannot be imported.
        CompileError: the target or the numerics cannot be served.
    """
    import torch

    from quantvm.frontend import import_model
    from quantvm.lowering.pipeline import LoweringOptions, default_numerics

    from .schedule_files import schedules_for

    if batch not in ("dynamic", "static"):
        raise ConfigError(f"unknown batch {batch!r}, expected dynamic or static")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads: got {threads!r}, expected a whole number of at least 1")
    if not isinstance(target, str):
        raise ConfigError(f"target: got {target!r}, expected native or a TVM target like 'llvm -mcpu=cascadelake'")
    tvm_target = parse_target(target)
    store = chosen_cache(cache)
    with progress.task("compiling", total=3) as task, stage("compiling the model", CompileError):
        start_s = time.perf_counter()
        module = import_model(model_or_path, example_inputs, engine=engine, batch=batch)
        import_s = time.perf_counter() - start_s
        task.advance()
        options = LoweringOptions(
            tvm_target, numerics or default_numerics(module), threads or torch.get_num_threads(),
            schedules=schedules_for(tvm_target),
        )  # fmt: skip
        artifact = _generate(module, options) if store is None else _cached(store, module, options, progress)
        task.advance(2)
    artifact.report = dataclasses.replace(artifact.report, import_s=import_s)
    return artifact


def _cached(store: CompileCache, module: Any, options: LoweringOptions, progress: Progress) -> Artifact:
    """Returns the code of a module from the cache, or generates it and keeps it there."""
    from .cache_key import cache_key

    start_s = time.perf_counter()
    key = cache_key(module, options)
    found = store.find(key)
    if found is not None:
        found.key = key
        found.report = dataclasses.replace(found.report, cached=True, load_s=time.perf_counter() - start_s)
        return found
    artifact = _generate(module, options)
    artifact.key = key
    try:
        store.store(key, artifact)
    except (CompileError, OutputError) as error:
        progress.note(f"the compiled model is not kept for the next time: {error}")
        return artifact
    stored = store.find(key)
    if stored is None:
        return artifact
    stored.key, stored.report = key, artifact.report
    return stored


def _generate(module: Any, options: LoweringOptions) -> Artifact:
    """Lowers an imported module and generates its code; the report's import_s is not known here."""
    from quantvm.lowering import lower
    from quantvm.tvm_compat import build_executable

    from .float_reasons import float_reasons

    assert options.numerics is not None
    start_s = time.perf_counter()
    lowered, report = lower(module, options)
    kernel_of = _kernel_names(lowered)
    executable = build_executable(lowered, options.target)
    return Artifact(
        BuiltLibrary(executable, kernel_of),
        signature_of(module),
        CompileReport(
            import_s=0.0,
            compile_s=time.perf_counter() - start_s,
            int8_mac_share=report.int8_mac_share,
            float_ops=report.float_ops,
            target=target_text(options.target),
            kernels=report.kernels,
            engine=engine_of(module),
            numerics=options.numerics,
            threads=options.threads,
            output_scale=report.output_scale,
            float_reasons=float_reasons(module, report.float_ops, options.numerics),
        ),
        requirements_of(options.target),
    )


def _kernel_names(lowered: Any) -> dict[str, str | None]:
    """Returns the kernel of each function but main; None for TVM's own: operators left in float, or moving data."""
    return {
        str(variable.name_hint): kernel_name(function)
        for variable, function in lowered.functions.items()
        if variable.name_hint != "main"
    }
