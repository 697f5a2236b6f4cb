"""Everything that can be wrong with what was asked is found here, before any model is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantvm.data.dataset import CalibrationSet
from quantvm.errors import ConfigError, WeightsError
from quantvm.jobs.evaluation.config import RunConfig, raise_problems, resolve_threads
from quantvm.jobs.evaluation.stages import Stages
from quantvm.models.weights import WeightsUnavailableError
from quantvm.progress import SILENT, Progress

if TYPE_CHECKING:
    from quantvm.data import Dataset
    from quantvm.models import ModelSpec
    from quantvm.models.weights import ResolvedWeights
    from quantvm.workload.user_models import UserProgram


_LABELS_OF_OTHERS = (
    "class_map: sorted numbers the folders 0, 1, ..., and these models know ImageNet's 1,000 classes by their wnids: "
    "{}. Name the folders by wnid, such as n01440764, and leave out --class-map; sorted is for a model of your own "
    "(--model FILE) whose classes are these folders"
)


@dataclass(frozen=True)
class Entry:
    """One model of the plan: its weights, or why it is skipped and what to do about that."""

    spec: ModelSpec
    weights: ResolvedWeights | None
    reason: str | None = None
    remedy: str | None = None

    @property
    def program(self) -> UserProgram | None:
        """The user's own quantized program; None for a model that is quantized here, or for a checkpoint."""
        return getattr(self.spec, "program", None)

    @property
    def is_quantized(self) -> bool:
        """Whether it needs no images to be calibrated on, because its user quantized it."""
        return self.program is not None

    @property
    def missing_reference(self) -> str | None:
        """Why TVM's outputs cannot be compared with anything; None if they can."""
        return None if self.program is None else self.program.missing_reference


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
    specs: list[ModelSpec | str] = []
    for word in dict.fromkeys(config.models):
        try:
            specs.append(word if stages.is_own(word) else stages.get_model(word))
        except ConfigError as error:
            problems.append(f"models: {error}")
    if not problems:
        problems += stages.unsupported_options(config)
    raise_problems(problems)
    threads = resolve_threads(config.threads, stages.physical_cores())
    registered = [spec.name for spec in specs or stages.default_models() if not isinstance(spec, str)]
    # of random weights no accuracy means anything, and parity needs no labels
    if registered and config.weights != "random" and not stages.has_imagenet_labels(config):
        raise ConfigError(_LABELS_OF_OTHERS.format(", ".join(registered)))
    dataset = stages.load_dataset(config, progress)
    entries = _named(specs, config, stages, progress) if specs else _all_to_be_had(config, stages, progress)
    if all(entry.is_quantized for entry in entries):
        calibration = CalibrationSet((), "none, the models bring their own ranges")
    else:
        calibration = stages.load_calibration(config, dataset, progress)
    return Plan(config, threads, dataset, calibration, tuple(entries))


def _named(specs: Sequence[ModelSpec | str], config: RunConfig, stages: Stages, progress: Progress) -> list[Entry]:
    entries, errors, problems = [], [], []
    for spec in specs:
        try:
            if isinstance(spec, str):
                entries.append(Entry(*stages.load_own(spec, config)))
            else:
                entries.append(Entry(spec, stages.resolve_weights(spec, config, progress)))
        except WeightsError as error:
            errors.append(str(error))
        except ConfigError as error:
            problems.append(f"models: {error}")
    if config.check_parity is not None:
        missing = [(entry, entry.missing_reference) for entry in entries]
        problems += [f"check_parity: {entry.spec.name}: {reason}" for entry, reason in missing if reason is not None]
    raise_problems(problems)
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


def unknown_labels(plan: Plan) -> list[str]:
    """Returns a sentence for every model of the user's own that has no score for a class of the images."""
    last = max(sample.label for sample in plan.dataset.samples)
    known = [(entry.spec.name, getattr(entry.spec, "n_classes", None)) for entry in plan.entries]
    few = [(name, n) for name, n in known if n is not None and last >= n]
    if plan.config.class_map == "sorted":
        return [
            f"data: {plan.dataset.name} has {last + 1} classes, {name} {n}; use data of {n} classes" for name, n in few
        ]
    return [
        f"data: {plan.dataset.name} has images of class {last} (counted from 0), and {name} has {n} classes; if the "
        "classes of this model are your folders in sorted order, say --class-map sorted, in a run without registered "
        "models"
        for name, n in few
    ]
