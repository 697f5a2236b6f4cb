"""`prepare` makes the quantized program that a job compiles, from a word (`model_words.py`) and options.

Jobs with many models make a plan first (`plan.py`), and get their programs one by one with `quantized`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantvm.data import iterate_inputs
from quantvm.errors import ConfigError
from quantvm.models import ModelSpec, get_model
from quantvm.models.quantize import load_quantized_model, quantize, quantize_by
from quantvm.models.weights import build_float_model, resolve_weights
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import use_threads
from quantvm.workload.model_words import kind_of
from quantvm.workload.options import OneModelOptions
from quantvm.workload.plan import Entry, Plan, plan_of
from quantvm.workload.program import Program, Shape
from quantvm.workload.user_models import FloatModel, UserSpec, load_model

if TYPE_CHECKING:
    from torch import nn

_CALIBRATION_BATCH_SIZE = 16
"""Observers merge their histograms batch by batch, so the batch size influences the quantized ranges. It does not
follow --batch-size, or that option would change the network that is measured."""

_NOISE_IMAGES = 2


def prepare(
    word: str, options: OneModelOptions, *, refuse_float: str | None = None, progress: Progress = SILENT
) -> tuple[Program, Plan | None]:
    """Returns the quantized program that a word names, and the plan by which it was quantized, if it was not before.

    A quantized program of the user's own is loaded. A float model, registered or made by a factory, is quantized
    according to the options, which include the engine and the number of threads.

    Args:
        word: a name of the registry, a file, or a factory as ``pkg.mod:name``.
        options: how it is quantized, and on which images it is calibrated.
        refuse_float: why float models are refused; None if they are not.
        progress: where long work reports to.

    Raises:
        QuantvmError: an option, the model or its weights are wrong, or PyTorch cannot quantize it by that flow.
    """
    found = _own(word, options.shapes, options)
    if isinstance(found, Program):
        return found, None
    if refuse_float is not None and found is not None:
        raise ConfigError(refuse_float)
    plan = plan_of(options.workload(), progress)
    use_threads(plan.machine)
    (entry,) = plan.entries
    with quantization_engine(plan.options.engine):
        return quantized(entry, plan, options.flow, TitledProgress(progress, entry.spec.title)), plan


def quantized(entry: Entry, plan: Plan, flow: str | None, progress: Progress) -> Program:
    """Returns the quantized program of a model of a plan.

    Args:
        entry: a model that has weights.
        plan: with the images that it is calibrated on.
        flow: how PyTorch quantizes; None for the first way in which it can.
        progress: where long work reports to.

    Raises:
        ConfigError: PyTorch cannot quantize the model by that flow.
    """
    if entry.program is not None:
        return entry.program
    spec, options = entry.spec, plan.options
    inputs = CalibrationInputs(plan, spec)
    float_module = float_module_of(entry, plan, progress)
    if float_module is None:
        assert entry.weights is not None
        module = load_quantized_model(spec, entry.weights, engine=options.engine)
    else:
        if flow is not None and flow not in spec.flows:
            raise ConfigError(
                f"{spec.name}: PyTorch cannot quantize it by the flow {flow}; use {' or '.join(spec.flows)}"
            )
        module = quantize_by(options.quantization(flow or spec.flows[0]), float_module, inputs, progress)
    crop = spec.preprocessing.crop
    made = Program.quantized_here(spec.name, module, (1, 3, crop, crop), float_module)
    return replace(made, title=spec.title, preprocessing=spec.preprocessing)


def float_module_of(entry: Entry, plan: Plan, progress: Progress = SILENT) -> nn.Module | None:
    """Returns the float model with its weights loaded, or None where only quantized weights were published."""
    assert entry.weights is not None  # a model without weights has nothing to be quantized
    if isinstance(entry.spec, UserSpec):
        return entry.spec.float_module
    if entry.weights.kind == "quantized":
        return None
    inputs = CalibrationInputs(plan, entry.spec)
    with progress.task("draw random weights" if entry.weights.kind == "random" else "load weights"):
        return build_float_model(entry.spec, entry.weights, calibration_batches=inputs, seed=plan.options.seed)


def without_weights(word: str) -> nn.Module:
    """Returns the float module that a word names, before its weights are loaded."""
    if kind_of(word) == "registered":
        return get_model(word).build()
    found = load_model(word)
    assert isinstance(found, FloatModel)  # only float models are asked for
    return found.module


def prepare_shapes(word: str, *, input_shapes: tuple[Shape, ...] | None = None) -> Program:
    """Returns a quantized program with the operators and shapes of the one that a word names.

    Weights and images do not matter: a float model gets random ones, and is calibrated on noise.

    Args:
        word: as for `prepare`.
        input_shapes: of the inputs of programs that do not say them.
    """
    found = _own(word, input_shapes)
    if isinstance(found, Program):
        return found
    if found is None:
        spec = get_model(word)
        shape: Shape = (1, 3, spec.preprocessing.crop, spec.preprocessing.crop)
        noise_f32 = _noise(shape)
        flows, module = spec.flows, build_float_model(spec, resolve_weights(spec, "random"), noise_f32)
    else:
        (shape,) = found.shapes
        noise_f32, flows, module = _noise(shape), found.flows, found.module
    made = quantize(module, noise_f32, flow=flows[0])
    return Program.quantized_here(word, made, shape, module)


def _noise(shape: tuple[int, ...]) -> list[np.ndarray]:
    return [np.random.default_rng(0).standard_normal((_NOISE_IMAGES, *shape[1:])).astype(np.float32)]


def _own(
    word: str, input_shapes: tuple[Shape, ...] | None, options: OneModelOptions | None = None
) -> Program | FloatModel | None:
    """Returns the model of a file or a factory; None for a registered name."""
    return None if kind_of(word) == "registered" else load_model(word, input_shapes=input_shapes, quantization=options)


class CalibrationInputs:
    """The calibration images as a model's input, in batches of a fixed size, read anew at each iteration."""

    def __init__(self, plan: Plan, spec: ModelSpec) -> None:
        self._plan, self._spec = plan, spec

    def __len__(self) -> int:
        return -(-len(self._plan.calibration.images) // _CALIBRATION_BATCH_SIZE)

    def __iter__(self) -> Iterator[np.ndarray]:
        sources, prepared = self._plan.calibration.images, self._plan.images
        return iterate_inputs(sources, self._spec.preprocessing, _CALIBRATION_BATCH_SIZE, prepared=prepared)
