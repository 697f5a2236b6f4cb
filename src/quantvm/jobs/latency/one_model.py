"""Measures one model with all engines: builds files, starts workers, checks outputs, and only then times calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.choices import FLOWS
from quantvm.errors import ConfigError
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.latency.engines import Job
from quantvm.jobs.latency.rounds import alternate, summarize
from quantvm.jobs.latency.schema import BenchModelRow, EngineRow, EngineStatus, ProfileRow
from quantvm.jobs.latency.workers import ProcessWorker, Worker, WorkerError
from quantvm.score.parity import OutputShapeError, check_outputs
from quantvm.storage.scratch import is_full

if TYPE_CHECKING:
    from quantvm.models import ModelSpec
    from quantvm.report.schema import WeightsRow

GREATEST_COMPILING_LOSS = 1.0
"""The most that TVM may differ from PyTorch where PyTorch sums floats (PT2E, networks that are partly float).

The unit is the distance of PyTorch's outputs from those of the float model.
"""
_MIN_CALLS = 5
_WARM_UP_SECONDS = 0.3


@dataclass
class ModelBench:
    """One model whose files lie in the job's folder.

    Attributes:
        spec: the model.
        weights: where they came from.
        engines: names of the engines to measure.
        missing: those of them that cannot run here, and why.
        job: what all workers share; engine and threads are filled in for each.
        config: the options, with the thread counts filled in.
        note: shows a line to the user.
        log: writes details of a failure to the log.
        output_failed: whether an engine failed because a file could not be written.
    """

    spec: ModelSpec
    weights: WeightsRow
    engines: Sequence[str]
    missing: dict[str, str]
    job: Job
    config: BenchConfig
    note: Callable[[str], None]
    log: Callable[[str], None]
    built: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    output_failed: bool = False

    @property
    def reference(self) -> str | None:
        """The engine whose outputs TVM must give; measured only if it is asked for."""
        return self.config.reference if "tvm" in self.engines else None

    def go(self) -> Iterator[BenchModelRow]:
        """Yields a row for each thread count and batch size, as soon as it is final."""
        self._build()
        for count in self.config.threads:
            yield from self._measure(replace(self.job, threads=count))

    def _names(self) -> list[str]:
        """Returns the engines to start, the reference before TVM."""
        first = [self.reference] if self.reference else []
        return [*first, *(name for name in self.engines if name not in first and name not in self.missing)]

    def _build(self) -> None:
        threads = self.config.threads
        for name in self._names():
            self.note(f"{self.spec.title}: {name} builds")
            try:
                job = replace(
                    self.job, engine=name, threads=max(threads), thread_counts=threads,
                    batch_sizes=tuple(self.config.batch_sizes),
                )  # fmt: skip
                worker: Worker = ProcessWorker(job)
                try:
                    self.built[name] = worker.request("build")
                finally:
                    worker.close()
            except WorkerError as error:
                self.broken[name] = self._failure_reason(name, "build", error)

    def _measure(self, job: Job) -> Iterator[BenchModelRow]:
        with ExitStack() as stack:
            session = _Session(self, job)
            for name in self._names():
                session.start(name, stack)
            for batch in self.config.batch_sizes:
                session.check(batch)
            for batch in self.config.batch_sizes:
                session.time(batch)
                if self.config.profile:
                    session.profile(batch)
                yield self._row(session, batch)

    def _row(self, session: _Session, batch: int) -> BenchModelRow:
        row = session.row(batch)
        self.note(_outcome(row))
        return row

    def _failure_reason(self, name: str, what: str, error: WorkerError) -> str:
        """Logs the details of an engine's failure; returns the reason as one line."""
        self.output_failed |= error.is_output_failure or is_full(Path(self.job.folder))
        self.log(f"{self.spec.name}, {name}, {what}: {error}\n{error.details}")
        self.note(f"{self.spec.title}: {name} failed at {what}: {error}")
        return " ".join(f"{what}: {error}".split())


class _Session:
    """The workers of one model and thread count: all are alive, and one at a time works."""

    def __init__(self, bench: ModelBench, job: Job) -> None:
        self._bench, self._shared_job = bench, job
        self._workers: dict[str, Worker] = {}
        self._rows: dict[tuple[str, int], EngineRow] = {}
        self._profiles: dict[int, ProfileRow] = {}

    def start(self, name: str, stack: ExitStack) -> None:
        """Starts an engine and loads it for every batch size; saves the outputs of each first call."""
        bench = self._bench
        facts = bench.built.get(name, {})
        for batch in bench.config.batch_sizes:
            self._rows[name, batch] = engine_row(facts)
        if name in bench.broken:
            self._fail(name, "error", bench.broken[name])
            return
        bench.note(f"{bench.spec.title}, threads {self._shared_job.threads}: {name} loads")
        batch = bench.config.batch_sizes[0]
        try:
            worker = ProcessWorker(self._job(name))
            stack.callback(worker.close)
            self._workers[name] = worker
            for batch in bench.config.batch_sizes:
                self._rows[name, batch].update(worker.request("load", batch=batch))  # type: ignore[typeddict-item]
        except WorkerError as error:
            self._fail(name, "error", bench._failure_reason(name, f"load of batch {batch}", error))

    def check(self, batch: int) -> None:
        """Compares all outputs with the float model's, and TVM's with the reference's; wrong engines are not timed."""
        float_f32 = np.load(self._bench.job.float_output_path)[:batch]
        outputs = {}
        for (name, of_batch), row in self._rows.items():
            if of_batch != batch or row["status"] != "measured":
                continue
            try:
                outputs[name] = check_outputs(name, np.load(self._job(name).output_path(batch)), batch)
                row["cosine_to_float"] = _cosine(outputs[name], float_f32)
            except (OutputShapeError, ValueError) as error:
                self._fail(name, "failed", str(error), batch)
        if "tvm" in outputs:
            self._check_tvm(outputs["tvm"], outputs.get(self._bench.reference or ""), float_f32, batch)

    def _check_tvm(
        self, actual_f32: np.ndarray, expected_f32: np.ndarray | None, float_f32: np.ndarray, batch: int
    ) -> None:
        reference = self._bench.reference
        if expected_f32 is None:
            self._fail("tvm", "error", f"its outputs cannot be checked, for {reference} gave none", batch)
            return
        if actual_f32.shape != expected_f32.shape:
            shapes = f"got {actual_f32.shape}, {reference} gives {expected_f32.shape}"
            self._fail("tvm", "failed", f"wrong output shape: {shapes}", batch)
            return
        identical = actual_f32.view(np.uint32) == expected_f32.view(np.uint32)
        row = self._rows["tvm", batch]
        row["outputs_identical"], row["outputs_total"] = int(identical.sum()), identical.size
        row["cosine_to_reference"] = _cosine(actual_f32, expected_f32)
        row["compiling_loss"] = loss = _compiling_loss(actual_f32, expected_f32, float_f32)
        share = row["int8_mac_share"]
        if self._bench.job.flow == "pt2e" or (share is not None and share < 1):
            if loss is None or loss > GREATEST_COMPILING_LOSS:
                times = "immeasurably many" if loss is None else f"{loss:.3g}"
                reason = (
                    f"its outputs are {times} times as far from {reference}'s as those are from the float model's, "
                    f"expected at most {GREATEST_COMPILING_LOSS:g}: no time"
                )
                self._fail("tvm", "failed", reason, batch)
        elif not identical.all():
            n = identical.size - int(identical.sum())
            greatest = float(np.abs(actual_f32 - expected_f32).max())
            reason = f"{n} of {identical.size} raw outputs differ from {reference}'s, by up to {greatest:.6g}: no time"
            self._fail("tvm", "failed", reason, batch)

    def time(self, batch: int) -> None:
        """Times the engines without a failure, in rounds."""
        bench, config = self._bench, self._bench.config
        ready = [name for name in bench.engines if self._is_ready(name, batch)]
        ready = [name for name in ready if self._ask(name, batch, "warm_up", seconds=_WARM_UP_SECONDS) is not None]

        def measure(name: str, seconds: float) -> Sequence[float] | None:
            found = self._ask(name, batch, "measure", seconds=seconds)
            return None if found is None else found["samples_ms"]

        rounds = alternate(ready, measure, min_rounds=config.rounds, min_seconds=config.seconds)
        for name, rounds_ms in rounds.items():
            try:
                memory = self._workers[name].request("memory")
            except WorkerError as error:
                self._fail(name, "error", bench._failure_reason(name, "memory", error), batch)
            else:
                self._rows[name, batch].update({**summarize(rounds_ms, batch), **memory})  # type: ignore[typeddict-item]

    def profile(self, batch: int) -> None:
        """Profiles TVM in a process that can compile."""
        if not self._is_ready("tvm", batch):
            return
        bench = self._bench
        try:
            worker = ProcessWorker(replace(self._job("tvm"), deployed=False))
            try:
                found = worker.request("profile", batch=batch, calls=_MIN_CALLS, seconds=bench.config.seconds)
            finally:
                worker.close()
        except WorkerError as error:
            self._fail("tvm", "error", bench._failure_reason("tvm", f"profile of batch {batch}", error), batch)
        else:
            self._profiles[batch] = found  # type: ignore[assignment]

    def _is_ready(self, name: str, batch: int) -> bool:
        row = self._rows.get((name, batch))
        return row is not None and row["status"] == "measured"

    def _ask(self, name: str, batch: int, operation: str, seconds: float) -> dict[str, Any] | None:
        """Returns what a worker measured; None, with the reason in its row, if it failed."""
        try:
            return self._workers[name].request(operation, batch=batch, calls=_MIN_CALLS, seconds=seconds)
        except WorkerError as error:
            reason = self._bench._failure_reason(name, f"{operation.replace('_', ' ')} of batch {batch}", error)
            self._fail(name, "error", reason, batch)
            return None

    def _fail(self, name: str, status: EngineStatus, reason: str, batch: int | None = None) -> None:
        """Notes that an engine has no time, for one batch size or for all."""
        for of_batch in self._bench.config.batch_sizes if batch is None else (batch,):
            row = self._rows[name, of_batch]
            row["status"], row["reason"] = status, reason

    def _job(self, name: str) -> Job:
        # TVM's process has no compiler, as for a deployed model, unless the model still has to be compiled there.
        deployed = name == "tvm" and "artifact_bytes" in self._bench.built.get(name, {})
        return replace(self._shared_job, engine=name, deployed=deployed)

    def row(self, batch: int) -> BenchModelRow:
        """Returns what was found for one batch size."""
        bench = self._bench
        engines: dict[str, EngineRow] = {}
        for name in bench.engines:
            if name in bench.missing:
                engines[name] = engine_row({"status": "missing", "reason": bench.missing[name]})
            else:
                engines[name] = self._rows[name, batch]
        return {
            "name": bench.spec.name,
            "title": bench.spec.title,
            "flow": bench.job.flow,
            "batch": batch,
            "threads": self._shared_job.threads,
            "weights": bench.weights,
            "engines": engines,
            "tvm_vs_best": tvm_vs_best(engines),
            "profile": self._profiles.get(batch),
        }


def engine_row(known: dict[str, Any]) -> EngineRow:
    """Returns a row with status `measured`, which a failure changes later; fields not in `known` are unknown."""
    row: EngineRow = {
        "status": "measured",
        "reason": None,
        "p50_ms": None,
        "p90_ms": None,
        "p99_ms": None,
        "min_ms": None,
        "n": 0,
        "n_rounds": 0,
        "round_p50_ms": [],
        "images_per_s": None,
        "spread": None,
        "spread_warning": False,
        "first_call_ms": None,
        "build_s": None,
        "import_s": None,
        "compile_s": None,
        "load_s": None,
        "artifact_bytes": None,
        "peak_rss_bytes": None,
        "inference_peak_rss_bytes": None,
        "outputs_identical": None,
        "outputs_total": None,
        "cosine_to_float": None,
        "cosine_to_reference": None,
        "compiling_loss": None,
        "int8_mac_share": None,
    }
    return {**row, **known}  # type: ignore[typeddict-item]


def tvm_vs_best(engines: dict[str, EngineRow]) -> float | None:
    """Returns the p50 of the best other engine over TVM's: above 1, TVM is faster; None if either is missing."""
    p50_ms = {name: row["p50_ms"] for name, row in engines.items() if row["p50_ms"] is not None}
    tvm_ms = p50_ms.pop("tvm", None)
    return min(p50_ms.values()) / tvm_ms if tvm_ms and p50_ms else None


def _cosine(actual_f32: np.ndarray, expected_f32: np.ndarray) -> float | None:
    """Returns the cosine of the two outputs, each minus its mean; None if either is constant."""
    actual, expected = (np.asarray(y - y.mean(), dtype=np.float64).ravel() for y in (actual_f32, expected_f32))
    norm = float(np.linalg.norm(actual) * np.linalg.norm(expected))
    return float(actual @ expected) / norm if norm > 0 and np.isfinite(norm) else None


def _compiling_loss(actual_f32: np.ndarray, expected_f32: np.ndarray, float_f32: np.ndarray) -> float | None:
    """Returns |actual - expected| / |expected - float| (Euclidean): the change by compiling over that by quantizing.

    0 if nothing differs; None if quantizing changed nothing, or an output is not finite.

    A difference at a rounding tie grows through the network just as the rounding errors of quantization do. So the
    quotient stays small for any weights; a cosine does not.
    """
    actual, expected, reference = (
        np.asarray(y, dtype=np.float64).ravel() for y in (actual_f32, expected_f32, float_f32)
    )
    if np.array_equal(actual, expected, equal_nan=True):
        return 0.0
    changed, quantized = np.linalg.norm(actual - expected), np.linalg.norm(expected - reference)
    return float(changed / quantized) if quantized > 0 and np.isfinite([changed, quantized]).all() else None


def _outcome(row: BenchModelRow) -> str:
    times = [
        f"{name} {found['p50_ms']:.2f} ms" if found["p50_ms"] else f"{name} {found['status']}"
        for name, found in row["engines"].items()
    ]
    return f"{row['title']}, batch {row['batch']}, threads {row['threads']}: {', '.join(times)}"


def _flow(spec: ModelSpec, config: BenchConfig) -> str:
    """Returns how PyTorch quantizes the model.

    Raises:
        ConfigError: PyTorch cannot quantize the model by the flow that was asked for.
    """
    possible = [flow for flow in FLOWS if flow in spec.flows]
    flow = config.flow or next((flow for flow in possible if flow != "pt2e"), "eager")
    if flow not in possible:
        raise ConfigError(f"PyTorch cannot quantize it by the flow {flow}; use {' or '.join(possible)}")
    return flow


def model_job(folder: Path, spec: ModelSpec, config: BenchConfig) -> Job:
    """Returns the job that all workers of a model share."""
    return Job(
        engine="",
        model=spec.name,
        folder=str(folder),
        threads=1,
        scheme=config.scheme,
        flow=_flow(spec, config),
        tvm_engine=config.tvm_engine,
        target=config.target,
    )
