"""Finds and checks all models, weights and images before any work is done on them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from quantvm.data import (
    Batch,
    CalibrationSet,
    Dataset,
    PreparedImages,
    Sample,
    find_data,
    has_imagenet_labels,
    iterate_parts,
    load_calibration,
    load_dataset,
)
from quantvm.errors import CompileError, ConfigError, WeightsError
from quantvm.models import ModelSpec, get_model, list_models
from quantvm.models.weights import ResolvedWeights, WeightsUnavailableError, resolve_weights
from quantvm.options.checks import resolve_threads
from quantvm.options.groups import CompilationOptions
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress
from quantvm.runtime.target import Machine, parse_target, physical_cores
from quantvm.torch_compat import torch_engines
from quantvm.workload.model_words import kind_of
from quantvm.workload.options import OneModelOptions, WorkloadOptions
from quantvm.workload.program import Program
from quantvm.workload.user_models import load_user_spec

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
    def program(self) -> Program | None:
        """The user's own quantized program; None for a model that is quantized here, or for a checkpoint."""
        return getattr(self.spec, "program", None)

    @property
    def is_quantized(self) -> bool:
        """Whether its user quantized it, so that it needs no images for calibration."""
        return self.program is not None

    @property
    def missing_reference(self) -> str | None:
        """Why TVM's outputs cannot be compared with anything; None if they can."""
        return None if self.program is None else self.program.missing_reference


@dataclass(frozen=True)
class Plan:
    """A workload that has passed every check which is possible beforehand.

    Attributes:
        options: of the workload.
        machine: what models are compiled for.
        dataset: the labelled images.
        calibration: the images that quantized ranges are calibrated on.
        entries: the models.
        images: what was decoded when the images were checked.
    """

    options: WorkloadOptions
    machine: Machine
    dataset: Dataset
    calibration: CalibrationSet
    entries: tuple[Entry, ...]
    images: PreparedImages = field(default_factory=PreparedImages)

    def batches(self, spec: ModelSpec, *parts: Sequence[Sample]) -> Generator[Batch, None, None]:
        """Yields images as input of the model, in order: those of the given parts, each cut on its own, or all."""
        options = self.options
        return iterate_parts(
            parts or [self.dataset.samples], spec.preprocessing, options.batch_size, prepared=self.images
        )


def models_of(options: WorkloadOptions, progress: Progress = SILENT) -> tuple[Entry, ...]:
    """Returns the models of a workload with their weights, after every option and name was checked.

    Raises:
        QuantvmError: there are problems; the message lists all problems of the first kind that was found.
    """
    problems = options.problems()
    specs: list[ModelSpec | str] = []
    for word in dict.fromkeys(options.models):
        try:
            specs.append(get_model(word) if kind_of(word, get_model) == "registered" else word)
        except ConfigError as error:
            problems.append(f"models: {error}")
    raise_problems(problems or unsupported_options(options))
    registered = [spec.name for spec in specs or _default_models() if not isinstance(spec, str)]
    # with random weights accuracy means nothing, and parity needs no labels
    if registered and options.weights != "random" and not has_imagenet_labels(options.data, options.class_map):
        raise ConfigError(_LABELS_OF_OTHERS.format(", ".join(registered)))
    find_data(options.data)  # before weights are downloaded
    return tuple(_named(specs, options, progress) if specs else _every_registered(options, progress))


def plan_of(
    options: WorkloadOptions,
    progress: Progress = SILENT,
    *,
    entries: Sequence[Entry] | None = None,
    images: PreparedImages | None = None,
) -> Plan:
    """Returns a plan in which every option, name, image and file of weights was checked.

    Args:
        options: of the workload.
        progress: where long work reports to.
        entries: what `models_of` returned for these options; None to call it.
        images: decodes the images, and may keep them for later; None: they are only checked.

    Raises:
        QuantvmError: there are problems; the message lists all problems of the first kind that was found.
    """
    entries = models_of(options, progress) if entries is None else tuple(entries)
    images = PreparedImages() if images is None else images
    dataset = images_of(options, progress, images)
    if all(entry.is_quantized for entry in entries):
        calibration = CalibrationSet((), "none, the models bring their own ranges")
    else:
        calibration = _calibration(options, dataset, images, progress)
    return Plan(options, machine_of(options), dataset, calibration, tuple(entries), images)


def machine_of(options: CompilationOptions) -> Machine:
    """Returns the machine that is compiled for, with the default number of threads if none was given."""
    return Machine(options.target, resolve_threads(options.threads, physical_cores()))


def unsupported_options(options: WorkloadOptions | OneModelOptions) -> list[str]:
    """Returns one sentence for every option that this machine, torch or TVM cannot serve."""
    problems = {}
    engines = torch_engines()
    if options.engine not in engines:
        problems["engine"] = f"this torch has no '{options.engine}' on this machine, only {', '.join(engines)}"
    try:
        parse_target(options.target)
    except CompileError as error:
        problems["target"] = str(error)
    return [f"{name}: {problem}" for name, problem in problems.items()]


def images_of(options: WorkloadOptions, progress: Progress, images: PreparedImages | None = None) -> Dataset:
    """Returns the labelled images, every one of them checked."""
    images = PreparedImages() if images is None else images
    return load_dataset(
        options.data, num_samples=options.num_samples, seed=options.seed, class_map=options.class_map,
        labels=options.labels, form=options.form, on_bad_image=options.on_bad_image, check=images.check,
        progress=progress,
    )  # fmt: skip


def _calibration(
    options: WorkloadOptions, dataset: Dataset, images: PreparedImages, progress: Progress
) -> CalibrationSet:
    """Returns the images that the quantized ranges are calibrated on, every one of them checked."""
    return load_calibration(
        options.data, options.calibration_data, num_samples=options.calibration_samples, seed=options.seed,
        evaluation=dataset, on_bad_image=options.on_bad_image, check=images.check, progress=progress,
    )  # fmt: skip


def _default_models() -> list[ModelSpec]:
    """Returns the models of a run that names none."""
    return [spec for spec in list_models() if spec.in_default_run]


def _named(specs: Sequence[ModelSpec | str], options: WorkloadOptions, progress: Progress) -> list[Entry]:
    """Returns the models that were named; each must have weights."""
    entries, errors, problems = [], [], []
    for spec in specs:
        try:
            if isinstance(spec, str):
                entries.append(Entry(*load_user_spec(spec, options)))
            else:
                entries.append(Entry(spec, resolve_weights(spec, options.weights, progress=progress)))
        except WeightsError as error:
            errors.append(str(error))
        except ConfigError as error:
            problems.append(f"models: {error}")
    raise_problems(problems)
    if errors:
        raise WeightsError("\n".join(errors))
    return entries


def _every_registered(options: WorkloadOptions, progress: Progress) -> list[Entry]:
    """Returns the models of a run that names none, including those without weights."""
    entries = []
    for spec in _default_models():
        try:
            entries.append(Entry(spec, resolve_weights(spec, options.weights, progress=progress)))
        except WeightsUnavailableError as error:
            entries.append(Entry(spec, None, error.reason, error.remedy))
    if all(entry.weights is None for entry in entries):
        reasons = [f"  {entry.spec.name}: {entry.reason}. {entry.remedy or ''}" for entry in entries]
        raise WeightsError("\n".join(["there are weights for none of the models:", *reasons]))
    return entries
