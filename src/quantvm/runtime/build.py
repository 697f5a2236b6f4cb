"""From a quantized torch program to an Artifact: import, lower, generate code."""

from __future__ import annotations

import time
from typing import Any

from quantvm.errors import ConfigError
from quantvm.progress import SILENT, Progress

from .artifact import Artifact, CompileReport
from .target import parse_target, target_text


def compile_model(
    model_or_path: Any,
    example_inputs: Any,
    *,
    numerics: str = "torch",
    engine: str | None = None,
    target: str = "native",
    batch: str = "dynamic",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Artifact:
    """Returns the quantized model compiled to int8 code.

    Args:
        model_or_path: an eager-quantized `nn.Module`, a traced module, or the path of a saved TorchScript file.
        example_inputs: one float32 NumPy or torch array (N, 3, H, W), or a sequence of them.
        numerics: torch: the same bits as the PyTorch engine that the model was quantized for.
        engine: that engine; by default what the model says, else `torch.backends.quantized.engine`.
        target: native, or a TVM target like `llvm -mcpu=cascadelake`.
        batch: dynamic: any number of images; static: that of the example.
        threads: PyTorch's thread count, which places the scalar tails of its element-wise kernels; by default
            `torch.get_num_threads()`.
        progress: where a long compilation reports to.

    Raises:
        ConfigError: a wrong option.
        ModelImportError, UnsupportedOpError: the model cannot be imported.
        CompileError: the target or the numerics cannot be served.
    """
    import torch

    from quantvm.frontend import from_torch
    from quantvm.lowering import LoweringOptions, lower
    from quantvm.tvm_compat import build_executable

    if batch not in ("dynamic", "static"):
        raise ConfigError(f"unknown batch {batch!r}, expected dynamic or static")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: got {threads}, expected at least 1")
    tvm_target = parse_target(target)
    threads = threads or torch.get_num_threads()
    with progress.task("compiling", total=3) as task:
        start_s = time.perf_counter()
        module = from_torch(model_or_path, example_inputs, engine=engine, batch=batch)
        import_s = time.perf_counter() - start_s
        task.advance()
        lowered, report = lower(module, LoweringOptions(tvm_target, numerics=numerics, threads=threads))
        task.advance()
        executable = build_executable(lowered, tvm_target)
        compile_s = time.perf_counter() - start_s - import_s
        task.advance()
    shapes = tuple(_shape(param) for param in module["main"].params)
    return Artifact(
        executable,
        shapes,
        CompileReport(
            import_s=import_s,
            compile_s=compile_s,
            int8_mac_share=report.int8_mac_share,
            float_ops=report.float_ops,
            target=target_text(tvm_target),
            kernels=report.kernels,
            engine=report.engine,
            numerics=numerics,
            threads=threads,
            output_scale=report.output_scale,
        ),
    )


def _shape(param: Any) -> tuple[int | None, ...]:
    return tuple(int(d) if hasattr(d, "value") else None for d in param.ty.shape)
