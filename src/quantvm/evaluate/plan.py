"""Everything that can be wrong with what was asked is found here, before any model is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantvm.errors import UnknownNameError, WeightsError
from quantvm.evaluate.config import RunConfig, raise_problems, resolve_threads
from quantvm.evaluate.stages import Stages
from quantvm.models.weights import WeightsUnavailableError
from quantvm.progress import SILENT, Progress

if TYPE_CHECKING:
    from quantvm.data import CalibrationSet, Dataset
    from quantvm.models import ModelSpec
    from quantvm.models.weights import ResolvedWeights


@dataclass(frozen=True)
class Entry:
    """One model of the plan: its weights, or why it is skipped and what to do about that."""

    spec: ModelSpec
    weights: ResolvedWeights | None
    reason: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Plan:
    """An evaluation of which everything that can be checked beforehand was found in order."""

    config: RunConfig
    threads: int
    dataset: Dataset
    calibration: CalibrationSet
    entries: tuple[Entry, ...]


def prepare(config: RunConfig, stages: Stages, progress: Progress = SILENT) -> Plan:
    """Returns a plan in which every option, name, image and file of weights was checked.

    Raises:
        QuantvmError: for the first kind of problem that there is, with all the problems of that kind.
    """
    problems = config.problems()
    specs = []
    for name in dict.fromkeys(config.models):
        try:
            specs.append(stages.get_model(name))
        except UnknownNameError as error:
            problems.append(f"models: {error}")
    if not problems:
        problems += stages.unsupported_options(config)
    raise_problems(problems)
    threads = resolve_threads(config.threads, stages.physical_cores())
    dataset = stages.load_dataset(config, progress)
    entries = _named(specs, config, stages, progress) if specs else _all_to_be_had(config, stages, progress)
    calibration = stages.load_calibration(config, dataset, progress)
    return Plan(config, threads, dataset, calibration, tuple(entries))


def _named(specs: Sequence[ModelSpec], config: RunConfig, stages: Stages, progress: Progress) -> list[Entry]:
    entries, errors = [], []
    for spec in specs:
        try:
            entries.append(Entry(spec, stages.resolve_weights(spec, config, progress)))
        except WeightsError as error:
            errors.append(str(error))
    if errors:
        raise WeightsError("\n".join(errors))
    return entries


def _all_to_be_had(config: RunConfig, stages: Stages, progress: Progress) -> list[Entry]:
    entries = []
    for spec in stages.default_models():
        try:
            entries.append(Entry(spec, stages.resolve_weights(spec, config, progress)))
        except WeightsUnavailableError as error:
            entries.append(Entry(spec, None, error.reason, error.remedy))
    if all(entry.weights is None for entry in entries):
        reasons = [f"  {entry.spec.name}: {entry.reason}. {entry.remedy or ''}" for entry in entries]
        raise WeightsError("\n".join(["there are weights for none of the models:", *reasons]))
    return entries
