"""The engines that are measured, each as it runs inside its own worker process.

An engine builds a file from the float model and the calibration images, and loads it for a batch size. The two happen
in separate processes, so that quantizing adds neither memory nor time to what is measured. To add an engine, write a
class with ``build`` and ``load``, and list it in `engine_kinds.ENGINES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantvm.choices import ENGINES as TORCH_ENGINES
from quantvm.errors import CompileError
from quantvm.jobs.latency.engine_kinds import ENGINES, EngineKind
from quantvm.torch_compat import torch_engines

if TYPE_CHECKING:
    from torch import nn

    from quantvm.runtime import Artifact

Run = Callable[[np.ndarray], np.ndarray]
"""Maps a batch, (N, 3, H, W) float32 at a 64-byte boundary, to raw outputs, (N, classes) float32."""

Facts = dict[str, Any]
"""Fields of EngineRow."""

CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Job:
    """What a worker process is for.

    Attributes:
        engine: a name of `engine_kinds.ENGINES`.
        model: a name of the registry.
        folder: holds the model's files, see the properties.
        threads: how many threads the engine computes with.
        scheme: `per-channel` or `per-tensor`, for PyTorch and TVM.
        flow: how PyTorch quantizes: `eager`, `fx` or `pt2e`.
        tvm_engine: the PyTorch engine whose bits TVM must give.
        target: what TVM compiles for.
        thread_counts: all that a build has to serve, because TVM's code depends on them. Empty: `threads` only.
        batch_sizes: all that a build has to serve, for engines that build a file for each.
        deployed: whether the process has neither PyTorch nor TVM's compiler, as a process that runs a deployed model.
    """

    engine: str
    model: str
    folder: str
    threads: int
    scheme: str = "per-channel"
    flow: str = "eager"
    tvm_engine: str = "fbgemm"
    target: str = "native"
    thread_counts: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    deployed: bool = False

    @property
    def float_model_path(self) -> Path:
        """The float model's state dict."""
        return Path(self.folder, "float.pth")

    @property
    def calibration_path(self) -> Path:
        """(N, 3, H, W) float32, every calibration image."""
        return Path(self.folder, "calibration.npy")

    @property
    def input_path(self) -> Path:
        """(N, 3, H, W) float32, N the largest batch; a smaller batch is its first rows."""
        return Path(self.folder, "input.npy")

    @property
    def float_output_path(self) -> Path:
        """(N, classes) float32, the float model's output."""
        return Path(self.folder, "float_output.npy")

    @property
    def program_path(self) -> Path:
        """The quantized program that TVM compiles; the engine whose outputs TVM must give writes it."""
        return Path(self.folder, "exported.pt2") if self.flow == "pt2e" else torch_file(self.folder, self.tvm_engine)

    def output_path(self, batch: int) -> Path:
        """(batch, classes) float32, the engine's output of its first call."""
        return Path(self.folder, f"{self.engine}-{self.threads}-{batch}.npy")

    def float_model(self) -> nn.Module:
        """Returns the float model that every engine starts from."""
        import torch

        from quantvm.workload.prepare import without_weights

        model = without_weights(self.model)
        model.load_state_dict(torch.load(self.float_model_path, weights_only=True))
        return model.eval()

    def calibration_batches(self) -> Iterator[np.ndarray]:
        """Yields the calibration images in batches."""
        images_f32 = np.load(self.calibration_path)
        for start in range(0, len(images_f32), CALIBRATION_BATCH):
            yield images_f32[start : start + CALIBRATION_BATCH]


class Engine(Protocol):
    """One way to run a model in int8."""

    def __init__(self, job: Job) -> None: ...

    def build(self) -> Facts:
        """Writes the file that `load` reads; returns facts about it."""
        ...

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns a function that runs a batch of that size, and facts about loading it."""
        ...


@contextmanager
def seconds(facts: Facts, name: str) -> Iterator[None]:
    """Notes how long the block took under `name`."""
    start_s = time.perf_counter()
    yield
    facts[name] = time.perf_counter() - start_s


class TorchEngine:
    """PyTorch: quantized, then traced and frozen, which calls the same kernels with less overhead.

    The file of the reference engine is also what TVM imports.
    """

    def __init__(self, job: Job) -> None:
        import torch

        self._job, self._name = job, job.engine.removeprefix("torch_")
        # Some operators choose their kernel by the engine, and a file's weights are unpacked for it.
        torch.backends.quantized.engine = self._name
        torch.set_num_threads(job.threads)
        self._frozen: Any = None

    def build(self) -> Facts:
        """Writes the TorchScript file."""
        import torch

        from quantvm.models.quantize import quantize
        from quantvm.torch_compat import quiet

        job = self._job
        facts: Facts = {}
        with seconds(facts, "build_s"), quiet(), torch.no_grad():
            module = quantize(
                job.float_model(), job.calibration_batches(), scheme=job.scheme, engine=self._name, flow=job.flow
            )
            example_f32 = torch.from_numpy(np.load(job.input_path)[:1])
            torch.jit.trace(module, example_f32, check_trace=False).save(str(self._path))
        return {**facts, "artifact_bytes": self._path.stat().st_size}

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns the frozen module, which takes any batch size."""
        import torch

        from quantvm.torch_compat import quiet, trigger_quantized_warnings

        facts: Facts = {}
        if self._frozen is None:
            trigger_quantized_warnings()
            with seconds(facts, "load_s"), quiet():
                self._frozen = torch.jit.freeze(torch.jit.load(str(self._path)).eval())
        frozen = self._frozen

        def run(x_f32: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return frozen(torch.from_numpy(x_f32)).numpy()

        return run, facts

    @property
    def _path(self) -> Path:
        return torch_file(self._job.folder, self._name)


def torch_file(folder: str, engine: str) -> Path:
    """Returns where the quantized TorchScript of a PyTorch engine lies."""
    return Path(folder, f"torch_{engine}.pt")


class TvmEngine:
    """quantvm's own int8 code, compiled from the file of the reference engine into a file of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def build(self) -> Facts:
        """Writes a model file for each thread count and batch size; without a linker, `load` compiles instead."""
        facts: Facts = {}
        for threads in self._job.thread_counts or (self._job.threads,):
            for batch in self._job.batch_sizes:
                artifact = self._compiled(threads, batch)
                facts = facts or self._facts(artifact)
                try:
                    size_bytes = artifact.save(self._path(threads, batch)).stat().st_size
                except CompileError:
                    return {}
                facts.setdefault("artifact_bytes", size_bytes)
        return facts

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns the model compiled for that batch size."""
        from quantvm.runtime import load
        from quantvm.workload.runners import TvmRunner

        path = self._path(self._job.threads, batch)
        if path.is_file():
            artifact = load(path)
            facts: Facts = {"load_s": artifact.report.load_s}
        else:
            artifact = self._compiled(self._job.threads, batch)
            facts = self._facts(artifact)
        return TvmRunner(artifact, threads=self._job.threads).run, facts

    def _compiled(self, threads: int, batch: int) -> Artifact:
        from quantvm import compiler

        job = self._job
        return compiler.compile(
            job.program_path,
            np.load(job.input_path)[:batch],
            engine=None if job.flow == "pt2e" else job.tvm_engine,
            target=job.target,
            batch="static",
            threads=threads,
            cache=True,
        )

    def _facts(self, artifact: Artifact) -> Facts:
        report = artifact.report
        return {
            "import_s": report.import_s,
            "compile_s": report.compile_s,
            "int8_mac_share": report.int8_mac_share,
        }

    def _path(self, threads: int, batch: int) -> Path:
        return Path(self._job.folder, f"tvm-{threads}-{batch}.qvm")


def why_missing(engine: str) -> str | None:
    """Returns why an engine cannot run in this installation, or None."""
    missing = ENGINES[engine].missing()
    if missing:
        extra = "pt2e" if engine.startswith("torch_") else "peers"
        return f"not installed: {', '.join(missing)}; pip install 'quantvm[{extra}]'"
    if engine.removeprefix("torch_") in TORCH_ENGINES:
        known = torch_engines()
        if engine.removeprefix("torch_") not in known:
            return f"this torch has only the engines {', '.join(known)}"
    return None


def make_engine(job: Job) -> Engine:
    """Returns the engine of a job, in the process that is to run it.

    A job may also name a PyTorch engine that is not in `ENGINES`, such as `torch_qnnpack`, as the reference of TVM.
    """
    kind = ENGINES.get(job.engine) or EngineKind(f"{__name__}:TorchEngine")
    module, _, name = kind.home.partition(":")
    return getattr(import_module(module), name)(job)
