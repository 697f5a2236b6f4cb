"""The calls that an evaluation is made of, each imported when it is first made.

This is the only file that imports the stages for the benchmark, and where its options become their arguments. A test,
or a caller with stages of its own, overrides methods of :class:`Stages`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import CompileError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from quantvm.data import Batch, CalibrationSet, Dataset, Sample
    from quantvm.models import ModelSpec
    from quantvm.models.weights import ResolvedWeights
    from quantvm.report.schema import EnvironmentRow
    from quantvm.runtime import Artifact
    from quantvm.workload.runners import Runner
    from quantvm.workload.user_models import UserProgram, UserSpec


# Observers merge their histograms batch by batch, so the batches decide the quantized ranges. They are the same
# whatever --batch-size is, or that option would change the network that is measured.
_CALIBRATION_BATCH_SIZE = 16
_LATENCY_ROUNDS = 5
_LATENCY_S = 0.5


class CalibrationInputs:
    """The calibration images as a model's input, in batches of a fixed size, read anew at each iteration."""

    def __init__(self, calibration: CalibrationSet, spec: ModelSpec) -> None:
        self._calibration, self._spec = calibration, spec

    def __len__(self) -> int:
        return -(-len(self._calibration.images) // _CALIBRATION_BATCH_SIZE)

    def __iter__(self) -> Iterator[np.ndarray]:
        from quantvm.data import iterate_inputs

        return iterate_inputs(self._calibration.images, self._spec.preprocessing, _CALIBRATION_BATCH_SIZE)


class Stages:
    """What the benchmark calls of the stages below it, in the order in which it does."""

    def get_model(self, name: str) -> ModelSpec:
        """Returns the registered model of that name, or raises UnknownNameError."""
        from quantvm.models import get_model

        return get_model(name)

    def is_own(self, word: str) -> bool:
        """Says whether a word names a model of the user's own, and not one of the registry.

        Raises:
            ConfigError: it names neither.
        """
        from quantvm.workload.model_words import kind_of

        return kind_of(word, self.get_model) != "registered"

    def load_own(self, word: str, config: RunConfig) -> tuple[UserSpec, ResolvedWeights]:
        """Returns the user's own classifier, loaded and found to map images to scores."""
        from quantvm.workload.user_models import load_user_spec

        shapes = None if config.input_shape is None else (config.input_shape,)
        return load_user_spec(word, config.image_options(), input_shapes=shapes, engine=config.engine)

    def default_models(self) -> Sequence[ModelSpec]:
        """Returns the models of a run that names none."""
        from quantvm.models import list_models

        return [spec for spec in list_models() if spec.in_default_run]

    def physical_cores(self) -> int:
        """Returns the number of physical cores that this process may use."""
        from quantvm.runtime.target import physical_cores

        return physical_cores()

    def unsupported_options(self, config: RunConfig) -> list[str]:
        """Returns one sentence for every option that this machine, torch or TVM cannot serve."""
        from quantvm.runtime.target import parse_target
        from quantvm.torch_compat import torch_engines

        problems = []
        engines = torch_engines()
        if config.engine not in engines:
            problems.append(f"engine: this torch has no '{config.engine}' on this machine, only {', '.join(engines)}")
        try:
            parse_target(config.target)
        except CompileError as error:
            problems.append(f"target: {error}")
        return problems

    def has_imagenet_labels(self, config: RunConfig) -> bool:
        """Returns whether the images' labels will be ImageNet's class indices."""
        from quantvm.data import has_imagenet_labels

        return has_imagenet_labels(config.data, config.class_map)

    def load_dataset(self, config: RunConfig, progress: Progress) -> Dataset:
        """Returns the labelled images, every one of them checked."""
        from quantvm.data import load_dataset

        return load_dataset(
            config.data,
            num_samples=config.num_samples,
            seed=config.seed,
            class_map=config.class_map,
            on_bad_image=config.on_bad_image,
            progress=progress,
        )

    def load_calibration(self, config: RunConfig, dataset: Dataset, progress: Progress) -> CalibrationSet:
        """Returns the images that the quantized ranges are calibrated on, every one of them checked."""
        from quantvm.data import load_calibration

        return load_calibration(
            config.data,
            config.calibration_data,
            num_samples=config.calibration_samples,
            seed=config.seed,
            evaluation=dataset,
            on_bad_image=config.on_bad_image,
            progress=progress,
        )

    def resolve_weights(self, spec: ModelSpec, config: RunConfig, progress: Progress) -> ResolvedWeights:
        """Returns where the model's weights lie, after a download if need be, or raises WeightsError."""
        from quantvm.models.weights import resolve_weights

        return resolve_weights(spec, config.weights, progress=progress)

    def torch_engine(self, config: RunConfig) -> AbstractContextManager[None]:
        """Returns a block in which PyTorch computes with the engine: some operators choose their kernel by it."""
        from quantvm.torch_compat import quantization_engine

        return quantization_engine(config.engine)

    def calibration_inputs(self, spec: ModelSpec, calibration: CalibrationSet) -> CalibrationInputs:
        """Returns the calibration images as the model's input."""
        return CalibrationInputs(calibration, spec)

    def build_float_model(
        self, spec: ModelSpec, weights: ResolvedWeights, inputs: CalibrationInputs, config: RunConfig
    ) -> nn.Module | None:
        """Returns the float model with its weights loaded, or None where only quantized weights were published."""
        from quantvm.models.weights import build_float_model
        from quantvm.workload.user_models import UserSpec

        if isinstance(spec, UserSpec):
            return spec.float_module
        if weights.kind == "quantized":
            return None
        return build_float_model(spec, weights, calibration_batches=inputs, seed=config.seed)

    def quantize(
        self,
        spec: ModelSpec,
        weights: ResolvedWeights,
        float_model: nn.Module | None,
        inputs: CalibrationInputs,
        config: RunConfig,
        progress: Progress,
    ) -> nn.Module | UserProgram:
        """Returns the quantized model: the float one's by the only flow of `config`, a checkpoint's, or the user's."""
        from quantvm.models.quantize import load_quantized_model, quantize
        from quantvm.workload.user_models import UserProgram, UserSpec

        if isinstance(spec, UserSpec) and spec.program is not None:
            return spec.program
        if float_model is None:
            return load_quantized_model(spec, weights, engine=config.engine)
        (flow,) = config.flows
        model = quantize(float_model, inputs, scheme=config.scheme, engine=config.engine, flow=flow, progress=progress)
        return UserProgram.exported_by_us(spec.name, model) if flow == "pt2e" else model

    def compile(
        self,
        quantized: nn.Module | UserProgram,
        spec: ModelSpec,
        config: RunConfig,
        threads: int,
        progress: Progress,
        *,
        numerics: str,
        cache: bool = True,
        verify: bool = False,
    ) -> Artifact:
        """Returns the quantized model compiled by TVM, maybe in an earlier run.

        Its outputs are compared with the reference's if `verify` says so: the main job does that itself, on images.

        Numerics torch means of a user's own program: as its own runtime computes. The batch size is any, unless such a
        program fixes it.
        """
        from quantvm import verification
        from quantvm.workload.user_models import UserProgram

        options: dict[str, Any] = {
            "target": config.target, "threads": threads, "cache": cache, "verify": verify, "progress": progress,
        }  # fmt: skip
        if isinstance(quantized, UserProgram):
            own: str | None = None if numerics == "torch" else numerics
            return quantized.compile(numerics=own, engine=config.engine, **options)
        crop = spec.preprocessing.crop
        example_f32 = np.zeros((1, 3, crop, crop), dtype=np.float32)
        return verification.compile(quantized, example_f32, numerics=numerics, engine=config.engine, **options)

    def torch_runner(self, module: nn.Module | UserProgram, threads: int) -> Runner | None:
        """Returns PyTorch as an engine that maps a batch to raw outputs; of a user's own program, its own runtime."""
        from quantvm.workload.runners import TorchRunner
        from quantvm.workload.user_models import UserProgram

        if isinstance(module, UserProgram):
            return module.runner(threads)
        return TorchRunner(module, threads=threads)

    def tvm_runner(self, artifact: Artifact, threads: int) -> Runner:
        """Returns TVM as an engine that maps a batch to raw outputs."""
        from quantvm.workload.runners import TvmRunner

        return TvmRunner(artifact, threads=threads)

    def latencies_ms(self, runners: Sequence[Runner], x_f32: np.ndarray) -> list[float]:
        """Returns each engine's median time of a call, in alternating rounds."""
        from quantvm.jobs.latency.rounds import alternate, time_calls

        names = {str(i): runner for i, runner in enumerate(runners)}
        rounds_ms = alternate(
            list(names),
            lambda name, seconds: time_calls(lambda: names[name].run(x_f32), min_calls=3, min_seconds=seconds),
            min_rounds=_LATENCY_ROUNDS,
            min_seconds=_LATENCY_S,
        )
        return [float(np.median(np.concatenate(rounds_ms[name]))) for name in names]

    def batches(self, samples: Sequence[Sample], spec: ModelSpec, config: RunConfig) -> Iterator[Batch]:
        """Yields the images as the model's input, in order."""
        from quantvm.data import iterate_batches

        return iterate_batches(samples, spec.preprocessing, config.batch_size)

    def describe_environment(self, threads: int) -> EnvironmentRow:
        """Returns what run.json says of the machine and the installation."""
        from quantvm.workload.environment import describe_environment

        return describe_environment(threads)

    def use_threads(self, threads: int) -> None:
        """Makes both engines compute with that many threads from now on."""
        import torch

        # TVM's pool reads the variable when it starts, which is at the first parallel kernel of the process.
        os.environ["TVM_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
