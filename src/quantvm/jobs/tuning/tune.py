"""``quantvm tune``: the convolutions of models, the fastest schedule of each on this CPU, and the file of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import CompileError, ConfigError, missing_package_named
from quantvm.jobs.evaluation.config import raise_problems, resolve_threads
from quantvm.jobs.tuning.schema import TunedRow, TuneResult, TuneRow
from quantvm.models import get_model, list_models
from quantvm.models.weights import build_float_model, resolve_weights
from quantvm.progress import SILENT, Progress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.storage.output_files import file_problem
from quantvm.workload.environment import installed_version
from quantvm.workload.model_words import kind_of

if TYPE_CHECKING:
    from torch import nn

    from quantvm.compiler.schedule_search import Work
    from quantvm.kernels.schedule.schedules import ScheduleFile, ScheduleRecord

_IMAGES = 2


@dataclass(frozen=True)
class TuneConfig:
    """The options of one search; ``quantvm tune`` has one of the same name for each field but the first.

    Attributes:
        models: names of registered models, files, or factories as ``pkg.mod:name``; empty for every registered model.
        input_shapes: of TorchScript files and factories that do not say them.
        threads: that the work is cut for; each number is searched for. Empty for TVM_NUM_THREADS, or else the physical
            cores.
        target: what TVM compiles for; this machine has to run it.
        out: the file that is written; None for the user's own, from which every compilation takes it.
    """

    models: tuple[str, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ((1, 3, 224, 224),)
    threads: tuple[int, ...] = ()
    target: str = "native"
    out: Path | None = None

    def problems(self) -> list[str]:
        """Returns one sentence for every option whose value cannot be, in the order of the options."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        for name in self.models:
            try:
                kind_of(name)
            except ConfigError as error:
                yield f"model: {error}"
        for shape in self.input_shapes:
            if len(shape) < 2 or min(shape) < 1:
                yield f"input_shape: got {','.join(map(str, shape))}, expected sizes of at least 1, as 1,3,224,224"
        for count in self.threads:
            if count < 1:
                yield f"threads: got {count}, expected at least 1"
        if self.out is not None and (problem := file_problem(self.out)) is not None:
            yield f"out: {problem}"


@missing_package_named()
def tune_schedules(config: TuneConfig, *, progress: Progress = SILENT) -> TuneResult:
    """Returns what the search found, after writing it into the file, over what was there.

    A schedule is kept where it is faster than the cost model's choice by more than the noise; for the others the model
    goes on choosing. When the search is interrupted, what was found until then is written.

    Raises:
        ConfigError: an option is wrong, or the file is damaged.
        OutputError: the file cannot be written.
        CompileError: the target names no CPU.
        MachineError: this machine cannot run the target's code.
    """
    from quantvm.compiler.schedule_files import target_cpu, user_schedules
    from quantvm.compiler.schedule_search import gains, tune
    from quantvm.runtime.requirements import requirements_of
    from quantvm.runtime.target import parse_target, physical_cores, target_text

    raise_problems(config.problems())
    target = parse_target(config.target)
    mcpu = target_cpu(target)
    if mcpu is None:
        raise CompileError(f"target '{config.target}' names no CPU, whose schedules would be kept; add -mcpu=NAME")
    requirements_of(target).check(f"code for '{target_text(target)}'")
    file = config.out or user_schedules(mcpu)
    known = _known(file, mcpu)
    threads = config.threads or (resolve_threads(None, physical_cores()),)
    work = _work(config, target, threads, progress)
    found: list[ScheduleRecord] = []
    interrupted = False
    try:
        for record in tune(work, target, progress=progress):
            found.append(record)  # noqa: PERF402 - what came before an interruption has to be in it
    except KeyboardInterrupt:
        interrupted = True
    kept = _write(file, known, found)
    row: TuneRow = {
        "schema_version": SCHEMA_VERSION,
        "target": target_text(target),
        "mcpu": mcpu,
        "threads": list(threads),
        "file": str(file),
        "searched": len(found),
        "asked": len(work),
        "gained": sum(gains(record) for record in found),
        "kept": kept,
        "found": [_tuned_row(record) for record in found],
    }
    return TuneResult(row, interrupted)


def _known(file: Path, mcpu: str) -> ScheduleFile:
    """Returns what the file holds, to be added to."""
    from quantvm.kernels.schedule.schedules import ScheduleFile, read_schedules
    from quantvm.runtime.target import cpu_model
    from quantvm.tvm_compat import tvm_version

    records: tuple[ScheduleRecord, ...] = ()
    if file.is_file():
        known = read_schedules(file)
        if known.mcpu != mcpu:
            raise ConfigError(f"{file} holds schedules of {known.mcpu}, not of {mcpu}; name another file")
        records = known.records
    measured_on = {"cpu": cpu_model(), "quantvm": installed_version("quantvm") or "", "tvm": tvm_version()}
    return ScheduleFile(mcpu, measured_on, records)


def _write(file: Path, known: ScheduleFile, found: Sequence[ScheduleRecord]) -> int:
    """Writes the old records with the new ones in their place; returns how many there are now."""
    from quantvm.compiler.schedule_search import merged
    from quantvm.kernels.schedule.schedules import ScheduleFile, write_schedules

    records = merged(known.records, found)
    write_schedules(file, ScheduleFile(known.mcpu, known.measured_on, records))
    return len(records)


def _work(config: TuneConfig, target: Any, threads: Sequence[int], progress: Progress) -> list[Work]:
    """Returns every convolution of the models, each once, for each number of threads."""
    from quantvm.compiler.schedule_search import Work
    from quantvm.lowering import LoweringOptions, lower

    names = config.models or tuple(spec.name for spec in list_models())
    found: dict[Work, None] = {}
    with progress.task("importing models", total=len(names)) as task:
        for name in names:
            _, report = lower(_imported(name, config), LoweringOptions(target))
            found |= dict.fromkeys(Work(shape, dot, n) for n in threads for shape, dot in report.convolutions)
            task.advance()
    return list(found)


def _imported(name: str, config: TuneConfig) -> Any:
    from quantvm.frontend import from_torch, import_model
    from quantvm.torch_compat import quantization_engine
    from quantvm.workload.user_models import UserProgram, load_model

    with quantization_engine("fbgemm"):
        if kind_of(name) == "registered":
            spec = get_model(name)
            crop = spec.preprocessing.crop
            weights = resolve_weights(spec, "random")
            module = _quantized(lambda images_f32: build_float_model(spec, weights, images_f32), (1, 3, crop, crop))
            return from_torch(module, np.zeros((1, 3, crop, crop), np.float32))
        found = load_model(name, input_shapes=config.input_shapes)
        if isinstance(found, UserProgram):
            found.check(as_classifier=False)
            batch = "dynamic" if found.fixed_batch is None else "static"
            return import_model(found.value, found.example_inputs, engine=found.engine, batch=batch)
        (shape,) = found.shapes
        return from_torch(_quantized(lambda images_f32: found.module, shape), np.zeros(shape, np.float32))


def _quantized(build: Callable[[list[np.ndarray]], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """Returns a float model quantized on noise: only its shapes count."""
    from quantvm.models.quantize import quantize

    noise_f32 = [np.random.default_rng(0).standard_normal((_IMAGES, *shape[1:])).astype(np.float32)]
    return quantize(build(noise_f32), noise_f32)


def _tuned_row(record: ScheduleRecord) -> TunedRow:
    return {
        "shape": dataclasses.asdict(record.shape),
        "dot": record.dot,
        "threads": record.threads,
        "schedule": dataclasses.asdict(record.schedule),
        "time_us": record.time_us,
        "model_time_us": record.model_time_us,
    }
