"""PyTorch's runtimes for a program that PT2E quantized: the program itself, operator by operator, and TorchInductor.

Both load the same `.pt2` file, which TVM compiles, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantvm.jobs.latency.engines import Facts, Job, Run, seconds


class ExportedEngine:
    """The program itself: dequantize, float32 operators, quantize. It is the reference for TVM's outputs."""

    def __init__(self, job: Job) -> None:
        import torch

        self._job = job
        self._module: Any = None
        torch.set_num_threads(job.threads)

    def build(self) -> Facts:
        """Writes the program, unless another engine has done so."""
        import torch

        from quantvm.models.quantize import quantize
        from quantvm.torch_compat import quiet

        job, facts = self._job, Facts()
        if not job.program_path.is_file():
            with seconds(facts, "build_s"), quiet(), torch.no_grad():
                program = quantize(job.float_model(), job.calibration_batches(), flow="pt2e")
                torch.export.save(program, str(job.program_path))
        return {**facts, "artifact_bytes": job.program_path.stat().st_size}

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns a function that runs batches of that size."""
        import torch

        from quantvm.frontend.exported.importer import load_program
        from quantvm.torch_compat import quiet

        facts: Facts = {}
        if self._module is None:
            with seconds(facts, "load_s"), quiet():
                self._module = load_program(self._job.program_path).module()
        with quiet(), torch.no_grad():
            module = self._ready(batch, facts)

        def run(x_f32: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(torch.from_numpy(x_f32)).numpy()

        return run, facts

    def _ready(self, batch: int, facts: Facts) -> Any:
        return self._module


class InductorEngine(ExportedEngine):
    """TorchInductor, with its weights frozen, as PyTorch documents it for this quantizer; it needs a C++ compiler."""

    def _ready(self, batch: int, facts: Facts) -> Any:
        import torch
        from torch._inductor import config

        config.freezing = True
        config.compile_threads = 1  # its pool of processes would run beside what is measured
        config.cpp.threads = self._job.threads
        compiled = torch.compile(self._module, dynamic=False)
        with seconds(facts, "compile_s"):
            compiled(torch.from_numpy(np.load(self._job.input_path)[:batch]))
        return compiled
