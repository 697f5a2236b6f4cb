"""What one benchmark of latency is asked to do: ``BenchConfig`` and its checks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.latency.engines import ENGINES
from quantvm.models.quantize import Engine, Scheme

BENCH_FLOWS = ("eager", "fx", "pt2e")
"""Ways in which PyTorch quantizes; the first that a model has is the default."""


@dataclass(frozen=True)
class BenchConfig:
    """The options of one benchmark of latency; ``quantvm bench`` has one of the same name for each field.

    Attributes:
        models: names of registered models, or factories of float ones as ``pkg.mod:name``; empty for every registered
            model whose weights can be had.
        input_shape: of factories that do not say it; None for 1,3,224,224.
        engines: names of engines; empty for all that are installed.
        batch_sizes: images in one call; each is measured.
        threads: of every engine; each number is measured. Empty for TVM_NUM_THREADS, or else the physical cores.
        rounds: at least this many rounds through all engines.
        seconds: at least so many seconds of calls of each engine.
        weights: `auto`, `random`, or a folder that holds the official files.
        data: a named data set or a folder, whose images are the input; None for the embedded sample.
        calibration_data: a folder or `sample`; None for the data set's train part, or else a part of its images.
        calibration_samples: how many images the quantized ranges are calibrated on, at most.
        seed: of every random choice.
        scheme: how PyTorch and TVM quantize weights: `per-channel` or `per-tensor`; the peers use their own way.
        flow: how PyTorch quantizes: `eager`, `fx` or `pt2e`; None for eager, or fx where a model cannot be quantized by
            that. The engines of PyTorch that are measured are those of the flow.
        tvm_engine: the PyTorch engine whose bits TVM must give; of no meaning to pt2e, whose programs are for none.
        target: what TVM compiles for; `native` is this machine.
        profile: whether TVM's code is run once more to find where its time goes, after it was timed.
        out: the run folder that is written; None to write nothing.
    """

    models: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    engines: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    rounds: int = 5
    seconds: float = 2.0
    weights: str = "auto"
    data: str | None = None
    calibration_data: str | None = None
    calibration_samples: int = 64
    seed: int = 0
    scheme: Scheme = "per-channel"
    flow: str | None = None
    tvm_engine: Engine = "fbgemm"
    target: str = "native"
    profile: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        """Takes what a caller in Python would naturally give: one value for a tuple, a path as text."""
        for name in ("models", "engines", "batch_sizes", "threads"):
            value = getattr(self, name)
            values = (value,) if isinstance(value, str | int) else tuple(value)
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        for name in ("data", "calibration_data", "weights"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))

    @property
    def reference(self) -> str:
        """The engine whose outputs TVM must give."""
        return "torch_pt2e" if self.flow == "pt2e" else f"torch_{self.tvm_engine}"

    def engine_names(self) -> tuple[str, ...]:
        """Returns the engines to measure: those that are named, or all of the flow, installed or not."""
        flow = self.flow or "eager"
        return self.engines or tuple(name for name, kind in ENGINES.items() if flow in kind.flows)

    def run_config(self) -> RunConfig:
        """Returns the options that choosing models, weights and images needs, as the main job has them."""
        max_batch = max(self.batch_sizes, default=1)
        return RunConfig(
            models=self.models,
            input_shape=self.input_shape,
            data=self.data,
            calibration_data=self.calibration_data,
            calibration_samples=self.calibration_samples,
            # The images are input, and calibrate where nothing else does. All of a large set need not be read for it.
            num_samples=None if self.data is None else max(max_batch, self.calibration_samples),
            seed=self.seed,
            weights=self.weights,
            scheme=self.scheme,
            engine=self.tvm_engine,
            target=self.target,
            batch_size=max_batch,
            threads=max(self.threads, default=None),
            out=self.out,
        )

    def problems(self) -> list[str]:
        """Returns one sentence for every option of its own whose value cannot be; RunConfig knows the others."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown:
            yield f"engines: got '{', '.join(unknown)}', expected some of {', '.join(ENGINES)}"
        if self.profile and self.engines and "tvm" not in self.engines:
            yield f"profile: got '{', '.join(self.engines)}' as engines, expected tvm among them, the one profiled"
        if self.flow is not None and self.flow not in BENCH_FLOWS:
            yield f"flow: got '{self.flow}', expected one of {', '.join(BENCH_FLOWS)}"
        flow = self.flow or "eager"
        others = [name for name in self.engines if name in ENGINES and flow not in ENGINES[name].flows]
        if flow in BENCH_FLOWS and others:
            yield f"engines: got '{', '.join(others)}', which run no models that the flow {flow} quantizes"
        if flow == "pt2e" and self.scheme != "per-channel":
            yield f"scheme: got '{self.scheme}', expected per-channel, as the flow pt2e quantizes weights"
        if not self.batch_sizes:
            yield "batch_sizes: got none, expected at least one"
        for name in ("batch_sizes", "threads"):
            wrong = [str(value) for value in getattr(self, name) if value < 1]
            if wrong:
                yield f"{name}: got {', '.join(wrong)}, expected at least 1"
        if self.rounds < 1:
            yield f"rounds: got {self.rounds}, expected at least 1"
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            yield f"seconds: got {self.seconds}, expected more than 0"
        if self.weights == "torchvision-quantized":
            yield (
                "weights: got 'torchvision-quantized', expected float weights: every engine quantizes the same "
                "float model"
            )

    def as_json(self) -> dict[str, Any]:
        """Returns the options as bench.json holds them."""
        values = dataclasses.asdict(self)
        values |= {name: list(getattr(self, name)) for name in ("models", "engines", "batch_sizes", "threads")}
        values["input_shape"] = None if self.input_shape is None else list(self.input_shape)
        values["out"] = None if self.out is None else str(self.out)
        return values
