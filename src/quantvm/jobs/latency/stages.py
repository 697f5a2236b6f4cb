"""The calls that a benchmark of latency is made of, beside those of the main job; a test replaces them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from quantvm.jobs.evaluation.stages import Stages
from quantvm.jobs.latency.engines import ENGINES, Job
from quantvm.jobs.latency.workers import ProcessWorker, Worker
from quantvm.numerics.torch_engines import ENGINES as TORCH_ENGINES
from quantvm.workload.environment import installed_version

if TYPE_CHECKING:
    from quantvm.jobs.evaluation.plan import Plan
    from quantvm.models import ModelSpec
    from quantvm.models.weights import ResolvedWeights

_PEER_PACKAGES = ("onnx", "onnxruntime", "openvino", "nncf")


class BenchStages(Stages):
    """What ``quantvm.bench`` calls of the stages below it."""

    def why_missing(self, engine: str) -> str | None:
        """Returns why an engine cannot run in this installation, or None."""
        missing = ENGINES[engine].missing()
        if missing:
            extra = "pt2e" if engine.startswith("torch_") else "peers"
            return f"not installed: {', '.join(missing)}; pip install 'quantvm[{extra}]'"
        if engine.removeprefix("torch_") in TORCH_ENGINES:
            from quantvm.torch_compat import torch_engines

            known = torch_engines()
            if engine.removeprefix("torch_") not in known:
                return f"this torch has only the engines {', '.join(known)}"
        return None

    def write_model(self, spec: ModelSpec, weights: ResolvedWeights, plan: Plan, job: Job, max_batch: int) -> None:
        """Writes what every engine starts from: float model, calibration images, input, the float model's output."""
        import torch

        inputs = self.calibration_inputs(spec, plan.calibration)
        model = self.build_float_model(spec, weights, inputs, plan.config)
        assert model is not None  # quantized checkpoints are refused with the options
        torch.save(model.state_dict(), job.float_model_path)
        np.save(job.calibration_path, np.concatenate(list(inputs)))
        x_f32 = self._input(spec, plan, max_batch)
        np.save(job.input_path, x_f32)
        with torch.inference_mode():
            np.save(job.float_output_path, model(torch.from_numpy(x_f32)).numpy())

    def _input(self, spec: ModelSpec, plan: Plan, max_batch: int) -> np.ndarray:
        """Returns a batch of the data set's images, from its start again where it has too few."""
        from quantvm.data import iterate_inputs

        paths = [sample.path for sample in plan.dataset.samples]
        chosen = [paths[i % len(paths)] for i in range(max_batch)]
        return next(iterate_inputs(chosen, spec.preprocessing, max_batch))

    def start_worker(self, job: Job) -> Worker:
        """Returns an engine in a process of its own."""
        return ProcessWorker(job)

    def peer_versions(self) -> dict[str, str | None]:
        """Returns the versions of the peers' packages."""
        return {name: installed_version(name) for name in _PEER_PACKAGES}

    def load_average(self) -> float | None:
        """Returns how many processes wanted a core over the last minute, where the system says."""
        return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
