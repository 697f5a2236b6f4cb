"""Models and workers of a benchmark without processes, engines or clocks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

import quantvm
from quantvm.jobs.latency.workers import WorkerError

from ..evaluation.fakes import CLASSES, FakeWorkload

MS = {
    "tvm": 2.0, "torch_fbgemm": 4.0, "torch_x86": 3.0, "torch_onednn": 5.0, "torch_pt2e": 40.0, "torch_inductor": 3.5,
    "onnxruntime": 6.0, "openvino": 2.5,
}  # fmt: skip


@dataclass
class FakeWorker:
    """Each call takes the engine's time in MS for each image; `trouble` maps an operation to what it raises or does."""

    fakes: FakeBench
    job: object
    trouble: dict = field(default_factory=dict)
    open: bool = True

    def request(self, operation, **arguments):
        assert self.open
        self.fakes.asked.append((self.job.model, self.job.engine, self.job.threads, operation, arguments))
        if isinstance(self.trouble.get(operation), BaseException):
            raise self.trouble[operation]
        return getattr(self, f"_{operation}")(**arguments)

    def _build(self):
        return {"build_s": 1.0, "artifact_bytes": 2**20, **self.trouble.get("facts", {})}

    def _load(self, batch):
        y_f32 = np.load(self.job.float_output_path)[:batch] + np.float32(0.25)
        change = self.trouble.get("outputs")
        np.save(self.job.output_path(batch), change(y_f32) if change else y_f32)
        return {"load_s": 0.5, "first_call_ms": 9.0}

    def _warm_up(self, batch, calls, seconds):
        return {}

    def _measure(self, batch, calls, seconds):
        return {"samples_ms": [MS.get(self.job.engine, 1.0) * batch / self.job.threads] * 1000}

    def _memory(self):
        return {"peak_rss_bytes": 3 * 2**20, "inference_peak_rss_bytes": 2**20}

    def _profile(self, batch, calls, seconds):
        assert not self.job.deployed, "a profile has to compile"
        call = {
            "layer": "stem", "op": "conv2d", "kernel": "conv2d_u8i8acc32_fake", "in_shapes": [[batch, 8, 8, 3]],
            "out_shape": [batch, 4, 4, 16], "macs": 6912 * batch, "p50_ms": 0.75,
        }  # fmt: skip
        return {
            "total_ms": 1.0, "kernels_ms": 0.75, "hook_ms": 0.001, "instrumented_ms": 1.5, "n": 20, "calls": [call],
        }  # fmt: skip

    def close(self):
        self.open = False


class FakeBench(FakeWorkload):
    """`trouble` maps an engine to its worker's; `missing` maps an engine to why it cannot run.

    `broken_models` maps a model to what writing it raises.
    """

    def __init__(self, models=("alpha", "beta"), trouble=None, missing=None, unavailable=(), broken_models=None):
        super().__init__(models=models, unavailable=unavailable)
        self.trouble, self.missing_engines, self.broken_models = trouble or {}, missing or {}, broken_models or {}
        self.asked, self.workers = [], []

    @contextmanager
    def in_place(self):
        """Puts the fakes where a benchmark calls the real functions."""
        bench = "quantvm.jobs.latency.bench"
        with super().in_place(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{bench}.use_threads", self.use_threads)
            patch.setattr(f"{bench}.why_missing", self.missing_engines.get)
            patch.setattr(f"{bench}.write_model", lambda *arguments: self.write_model(*arguments))
            patch.setattr(f"{bench}.peer_versions", lambda: {"onnxruntime": "1.2.3"})
            patch.setattr(f"{bench}.load_average", lambda: 0.25)
            patch.setattr("quantvm.jobs.latency.one_model.ProcessWorker", self.start_worker)
            yield

    def write_model(self, entry, plan, job):
        if entry.spec.name in self.broken_models:
            raise self.broken_models[entry.spec.name]
        rng = np.random.default_rng(0)
        np.save(job.float_output_path, rng.standard_normal((plan.options.batch_size, CLASSES)).astype(np.float32))

    def start_worker(self, job):
        same = [worker.job for worker in self.workers if worker.open and worker.job.engine == job.engine]
        assert all(other.deployed and not job.deployed for other in same), "only a profile beside the timed process"
        self.workers.append(FakeWorker(self, job, self.trouble.get(job.engine, {})))
        return self.workers[-1]


def run_bench(fakes, *arguments, **options):
    """Returns `quantvm.bench` of fake models and engines."""
    with fakes.in_place():
        return quantvm.bench(*arguments, **options)


def failing(text="engine on fire", *, is_output_failure=False):
    return WorkerError(f"RuntimeError: {text}", "the stack", is_output_failure)
