"""``quantvm tune``: finds the fastest schedule of each convolution on this CPU, and writes these to a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import CompileError, ConfigError, missing_package_named
from quantvm.jobs.tuning.config import TuneConfig
from quantvm.jobs.tuning.schema import TunedRow, TuneResult, TuneRow
from quantvm.models import list_models
from quantvm.options.checks import resolve_threads
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import installed_version
from quantvm.workload.prepare import prepare_shapes

if TYPE_CHECKING:
    from quantvm.compiler.schedule_search import Work
    from quantvm.kernels.schedule.schedules import ScheduleFile, ScheduleRecord


@missing_package_named()
def tune_schedules(config: TuneConfig, *, progress: Progress = SILENT) -> TuneResult:
    """Returns what the search found, after writing it into the file, where it replaces older records.

    A schedule is kept if it is faster than the cost model's choice by more than the noise; for the other convolutions
    the model goes on choosing. When the search is interrupted, what was found until then is written.

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
    config = dataclasses.replace(config, threads=config.threads or (resolve_threads(None, physical_cores()),))
    work = _work(config, target, progress)
    found: list[ScheduleRecord] = []
    interrupted = False
    try:
        for record in tune(work, target, progress=progress):
            found.append(record)  # noqa: PERF402 - after an interruption it must hold what came before
    except KeyboardInterrupt:
        interrupted = True
    kept = _write(file, known, found)
    row: TuneRow = {
        "schema_version": SCHEMA_VERSION,
        "target": target_text(target),
        "mcpu": mcpu,
        "threads": list(config.threads),
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


def _work(config: TuneConfig, target: Any, progress: Progress) -> list[Work]:
    """Returns every convolution of the models, each once, for each number of threads."""
    from quantvm.kernels.schedule.schedule import Work
    from quantvm.lowering import LoweringOptions, lower

    names = config.models or tuple(spec.name for spec in list_models())
    found: dict[Work, None] = {}
    with progress.task("importing models", total=len(names)) as task:
        for name in names:
            _, report = lower(_imported(name, config), LoweringOptions(target))
            found |= dict.fromkeys(Work(shape, dot, n) for n in config.threads for shape, dot in report.convolutions)
            task.advance()
    return list(found)


def _imported(name: str, config: TuneConfig) -> Any:
    """Returns a model in Relax QDQ form; only its shapes and operators count."""
    from quantvm.frontend import import_model

    with quantization_engine("fbgemm"):
        program = prepare_shapes(name, input_shapes=config.input_shapes)
        if program.is_own:
            program.check(as_classifier=False)
        batch = "dynamic" if program.fixed_batch is None else "static"
        return import_model(program.value, program.example_inputs, engine=program.engine, batch=batch)


def _tuned_row(record: ScheduleRecord) -> TunedRow:
    work = record.work
    return {
        "shape": dataclasses.asdict(work.shape),
        "dot": work.dot,
        "threads": work.threads,
        "schedule": dataclasses.asdict(record.schedule),
        "time_us": record.time_us,
        "model_time_us": record.model_time_us,
    }
