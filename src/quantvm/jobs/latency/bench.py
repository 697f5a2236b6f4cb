"""Latency and throughput of the int8 engines side by side; each model is measured by ``one_model.py``."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from quantvm.data import iterate_inputs
from quantvm.errors import ConfigError, OutputError, QuantvmError, first_line, is_output_failure
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.latency.engines import Job, why_missing
from quantvm.jobs.latency.one_model import ModelBench, model_job
from quantvm.jobs.latency.rounds import geometric_mean
from quantvm.jobs.latency.schema import BenchResult, BenchRow, MeanRow
from quantvm.jobs.latency.text import bench_report
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.run_folder import LoggedProgress, RunFolder, run_json
from quantvm.storage.scratch import room_advice, scratch_folder
from quantvm.workload.environment import installed_version, use_threads
from quantvm.workload.head import head
from quantvm.workload.plan import Entry, Plan, plan_of
from quantvm.workload.prepare import CalibrationInputs, float_module_of

_PEER_PACKAGES = ("onnx", "onnxruntime", "openvino", "nncf")


def measure_latency(config: BenchConfig, *, progress: Progress = SILENT, command: str = "quantvm.bench") -> BenchResult:
    """Returns how fast the engines run the models in int8; see `quantvm.bench`."""
    started_s = time.monotonic()
    raise_problems(config.problems())
    engines = config.engine_names()
    missing = {name: why for name in engines if (why := why_missing(name)) is not None}
    if len(missing) == len(engines):
        raise ConfigError("\n".join(["none of the engines can run:", *(f"  {n}: {w}" for n, w in missing.items())]))
    plan = plan_of(config.workload(), progress)
    raise_problems(
        [
            f"models: {entry.spec.name} is quantized already, and every engine quantizes one float model in its own "
            "way; name a factory that returns the float model"
            for entry in plan.entries
            if entry.is_quantized
        ]
    )
    config = dataclasses.replace(config, threads=config.threads or (plan.machine.threads,))
    row = _bench_row(plan, config, engines, command)
    folder = RunFolder(config.out) if config.out is not None else None
    try:
        logged = progress if folder is None else LoggedProgress(progress, folder)
        return _Bench(plan, config, engines, missing, logged, folder, row, started_s).go()
    finally:
        if folder is not None:
            folder.close()


def _bench_row(plan: Plan, config: BenchConfig, engines: Sequence[str], command: str) -> BenchRow:
    found = head(plan, config, command)
    found["config"] |= {"threads": list(config.threads), "engines": list(engines)}
    found["environment"]["versions"] |= peer_versions()
    load = load_average()
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
    engines: Sequence[str]
    missing: dict[str, str]
    progress: Progress
    folder: RunFolder | None
    row: BenchRow
    started_s: float
    output_failed: bool = False

    def go(self) -> BenchResult:
        use_threads(self.plan.machine)
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
                self.output_failed |= is_output_failure(error)
                reason = str(error) if isinstance(error, QuantvmError) else f"{type(error).__name__}: {error}"
                self._skip(entry, "error", reason, None)
        load = load_average()
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
                write_model(entry, self.plan, job)
            model = ModelBench(
                spec=spec,
                weights={"source": entry.weights.source, "sha256": entry.weights.sha256},
                engines=self.engines,
                missing=self.missing,
                job=job,
                config=config,
                note=self.progress.note,
                log=self._log,
            )
            for row in model.go():
                self.row["models"].append(row)
                self.output_failed |= model.output_failed
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
        return BenchResult(self.row, self.config.engines, self.output_failed)


def write_model(entry: Entry, plan: Plan, job: Job) -> None:
    """Writes what every engine starts from: float model, calibration images, input, the float model's output.

    Raises:
        OutputError: there is no room in the job's folder.
    """
    import torch

    model = float_module_of(entry, plan)
    assert model is not None  # quantized checkpoints are refused when the options are checked
    calibration_f32 = np.concatenate(list(CalibrationInputs(plan, entry.spec)))
    x_f32 = _input(entry, plan)
    with torch.inference_mode():
        y_f32 = model(torch.from_numpy(x_f32)).numpy()
    try:
        torch.save(model.state_dict(), job.float_model_path)
        for path, array in (
            (job.calibration_path, calibration_f32), (job.input_path, x_f32), (job.float_output_path, y_f32)
        ):  # fmt: skip
            np.save(path, array)
    except (OSError, RuntimeError) as error:  # PyTorch's is a RuntimeError, NumPy's has no number
        folder = Path(job.folder)
        raise OutputError(f"cannot write to {folder}: {first_line(error)}; {room_advice(folder)}") from error


def _input(entry: Entry, plan: Plan) -> np.ndarray:
    """Returns the largest batch of the data set's images; if it has too few, they are repeated from the start."""
    sources, max_batch = [sample.source for sample in plan.dataset.samples], plan.options.batch_size
    chosen = [sources[i % len(sources)] for i in range(max_batch)]
    return next(iterate_inputs(chosen, entry.spec.preprocessing, max_batch))


def peer_versions() -> dict[str, str | None]:
    """Returns the versions of the peers' packages."""
    return {name: installed_version(name) for name in _PEER_PACKAGES}


def load_average() -> float | None:
    """Returns how many processes wanted a core over the last minute, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


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
