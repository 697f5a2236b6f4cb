"""Latency and throughput of the int8 engines side by side; each model is measured by ``bench_model.py``."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quantvm.errors import ConfigError, QuantvmError, missing_package_named
from quantvm.jobs.evaluation.config import raise_problems
from quantvm.jobs.evaluation.evaluate import head
from quantvm.jobs.evaluation.plan import Entry, Plan, prepare
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.latency.one_model import ModelBench, model_job
from quantvm.jobs.latency.rounds import geometric_mean
from quantvm.jobs.latency.schema import BenchResult, BenchRow, MeanRow
from quantvm.jobs.latency.stages import BenchStages
from quantvm.jobs.latency.text import bench_report
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.run_folder import LoggedProgress, RunFolder, run_json
from quantvm.storage.scratch import scratch_folder


@missing_package_named()
def bench(
    config: BenchConfig | None = None,
    *,
    progress: Progress = SILENT,
    command: str = "quantvm.bench",
    stages: BenchStages | None = None,
    **options: Any,
) -> BenchResult:
    """Returns how fast the engines run the models in int8; ``quantvm bench`` calls this.

    An engine that is missing or fails has a row that says so, and the others go on. TVM is timed only where its
    outputs have the bits of the PyTorch engine that it reproduces. After an interruption by Ctrl-C the result holds
    what was done until then. If ``config.out`` is set, bench.json is written after each row.

    Args:
        config: The options; or leave it out and give them by name, as in ``bench(models=("resnet18",), seconds=1)``.
        progress: Where long work reports to; silent while anything is measured.
        command: What bench.json names as the command.
        stages: The calls that it is made of.
        **options: The fields of BenchConfig, in place of `config`.

    Raises:
        QuantvmError: before any model is measured, if an option, a name, an image or the weights of a model that was
            named is wrong, or if no model or no engine at all can be measured.
    """
    if config is not None and options:
        raise ConfigError(f"bench: got a config and also {', '.join(sorted(options))}; give one or the other")
    config = config or BenchConfig(**options)
    stages = stages or BenchStages()
    started_s = time.monotonic()
    raise_problems(config.problems())
    engines = config.engine_names()
    missing = {name: why for name in engines if (why := stages.why_missing(name)) is not None}
    if len(missing) == len(engines):
        raise ConfigError("\n".join(["none of the engines can run:", *(f"  {n}: {w}" for n, w in missing.items())]))
    plan = prepare(config.run_config(), stages, progress)
    raise_problems(
        [
            f"models: {entry.spec.name} is quantized already, and every engine quantizes one float model in its own "
            "way; name a factory that returns the float model"
            for entry in plan.entries
            if entry.is_quantized
        ]
    )
    threads = config.threads or (plan.threads,)
    row = _bench_row(plan, config, threads, engines, stages, command)
    folder = RunFolder(config.out) if config.out is not None else None
    try:
        logged = progress if folder is None else LoggedProgress(progress, folder)
        return _Bench(plan, config, threads, engines, missing, stages, logged, folder, row, started_s).go()
    finally:
        if folder is not None:
            folder.close()


def _bench_row(
    plan: Plan,
    config: BenchConfig,
    threads: Sequence[int],
    engines: Sequence[str],
    stages: BenchStages,
    command: str,
) -> BenchRow:
    found = head(plan, stages, command)
    found["config"] = {**config.as_json(), "threads": list(threads), "engines": list(engines)}
    found["environment"]["versions"] |= stages.peer_versions()
    load = stages.load_average()
    return {
        **found,
        "reference": config.reference if "tvm" in engines else None,
        "load_average": [] if load is None else [load],
        "models": [],
        "skipped": [],
        "means": [],
    }


@dataclass
class _Bench:
    """One plan under way."""

    plan: Plan
    config: BenchConfig
    threads: Sequence[int]
    engines: Sequence[str]
    missing: dict[str, str]
    stages: BenchStages
    progress: Progress
    folder: RunFolder | None
    row: BenchRow
    started_s: float
    named: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.named = self.config.engines

    def go(self) -> BenchResult:
        self.stages.use_threads(max(self.threads))
        for index, entry in enumerate(self.plan.entries):
            try:
                self._bench(entry)
            except KeyboardInterrupt:
                self.row["interrupted"] = True
                for left in self.plan.entries[index:]:
                    self._skip(left, "skipped", "the benchmark was interrupted before its end", None)
                break
            except Exception as error:  # noqa: BLE001 - whatever one model does, the others go on
                self._log(f"{entry.spec.name} failed\n{traceback.format_exc()}")
                reason = str(error) if isinstance(error, QuantvmError) else f"{type(error).__name__}: {error}"
                self._skip(entry, "error", reason, None)
        load = self.stages.load_average()
        self.row["load_average"] += [] if load is None else [load]
        return self._save()

    def _bench(self, entry: Entry) -> None:
        spec, config = entry.spec, self.config
        if entry.weights is None:
            self._skip(entry, "skipped", entry.reason or "no weights", entry.remedy)
            return
        with scratch_folder("bench") as folder:
            job = model_job(folder, spec, config)
            progress = TitledProgress(self.progress, spec.title)
            with progress.task("prepare"):
                self.stages.write_model(spec, entry.weights, self.plan, job, max(config.batch_sizes))
            model = ModelBench(
                spec=spec,
                weights={"source": entry.weights.source, "sha256": entry.weights.sha256},
                engines=self.engines,
                missing=self.missing,
                job=job,
                config=config,
                stages=self.stages,
                note=self.progress.note,
                log=self._log,
            )
            for row in model.go(self.threads):
                self.row["models"].append(row)
                self._save()

    def _skip(self, entry: Entry, status: Literal["skipped", "error"], reason: str, remedy: str | None) -> None:
        self.row["skipped"].append(
            {
                "name": entry.spec.name,
                "title": entry.spec.title,
                "status": status,
                "reason": reason,
                "remedy": remedy,
            }
        )
        self._save()

    def _log(self, text: str) -> None:
        if self.folder is not None:
            self.folder.log(text)

    def _save(self) -> BenchResult:
        self.row["duration_s"] = time.monotonic() - self.started_s
        self.row["means"] = _means(self.row)
        if self.folder is not None:
            self.folder.write("report.md", bench_report(self.row).encode())
            self.folder.write("bench.json", run_json(self.row).encode())
        return BenchResult(self.row, self.named)


def _means(row: BenchRow) -> list[MeanRow]:
    """Returns the geometric mean of every setting that was measured."""
    settings = dict.fromkeys((model["threads"], model["batch"]) for model in row["models"])
    found: list[MeanRow] = []
    for threads, batch in settings:
        ratios = [
            model["tvm_vs_best"]
            for model in row["models"]
            if (model["threads"], model["batch"]) == (threads, batch) and model["tvm_vs_best"] is not None
        ]
        found.append(
            {"batch": batch, "threads": threads, "n_models": len(ratios), "tvm_vs_best": geometric_mean(ratios)}
        )
    return found
