"""What one compilation is asked to do: ``CompileConfig`` and its checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantvm.errors import ConfigError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.models.quantize import FLOWS, Engine, Scheme
from quantvm.storage.output_files import file_problem
from quantvm.workload.model_words import kind_of


@dataclass(frozen=True)
class CompileConfig:
    """The options of one compilation; ``quantvm compile`` has one of the same name for each field.

    Attributes:
        model: a file (TorchScript, .pt2, .onnx, .tflite), a factory as ``pkg.mod:name``, or the name of a registered
            model. What is float, registered or made by a factory, is quantized as in the main job.
        out: the model file that is written; None to write nothing.
        input_shapes: of a model that does not say them: the shape of each input, any number of images first. None:
            1,3,224,224.
        weights, data, calibration_data, calibration_samples, seed, scheme: of a registered model, as in RunConfig.
        flow: how PyTorch quantizes a float model: `eager`, `fx` or `pt2e`; None for the first of these that it can be
            quantized by.
        engine: the PyTorch engine that the model is quantized for, and whose bits the code gives.
        numerics: `torch`, the same bits as that engine, and of a .pt2, .onnx or .tflite the results of its own
            runtime; `integer`, no float between quantize and dequantize.
        target: what TVM compiles for; `native` is this machine.
        batch: of a quantized program of the user's own. `dynamic`: any number of images, unless the program fixes it.
            `static`: as many as `input_shapes` says, or one; it takes programs that cannot have any number.
        threads: PyTorch's thread count that is reproduced; None for TVM_NUM_THREADS, or else the physical cores.
        audit: whether the dot-product instructions of every kernel are counted; it is then compiled anew.
        verify: whether the outputs are compared with those of the model's own framework.
        min_int8_macs: None, or the least share of multiply-adds in int8 kernels, 0..1, for the check to be met.
    """

    model: str
    out: Path | None = None
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    weights: str = "auto"
    data: str | None = None
    calibration_data: str | None = None
    calibration_samples: int = 1000
    seed: int = 0
    scheme: Scheme = "per-channel"
    flow: str | None = None
    engine: Engine = "fbgemm"
    numerics: str = "torch"
    target: str = "native"
    batch: str = "dynamic"
    threads: int | None = None
    audit: bool = False
    verify: bool = True
    min_int8_macs: float | None = None

    @property
    def is_registered(self) -> bool:
        """Whether the model is a name of the registry, and no file lies there under that name."""
        try:
            return kind_of(self.model) == "registered"
        except ConfigError:
            return False

    def run_config(self) -> RunConfig:
        """Returns the options that choosing weights and images needs, as the main job has them."""
        return RunConfig(
            models=(self.model,),
            input_shape=self.input_shapes[0] if self.input_shapes else None,
            data=self.data,
            calibration_data=self.calibration_data,
            calibration_samples=self.calibration_samples,
            # Only calibration reads images; without a set of its own it takes them from these.
            num_samples=None if self.data is None else self.calibration_samples,
            seed=self.seed,
            weights=self.weights,
            scheme=self.scheme,
            flows=(self.flow or FLOWS[0],),
            engine=self.engine,
            numerics=(self.numerics,),
            target=self.target,
            threads=self.threads,
            min_int8_macs=self.min_int8_macs,
        )

    def problems(self) -> list[str]:
        """Returns one sentence for every option whose value cannot be, in the order of the options."""
        return [*self._own_problems(), *self.run_config().problems()]

    def _own_problems(self) -> Iterator[str]:
        try:
            kind_of(self.model)
        except ConfigError as error:
            yield f"model: {error}"
        if self.batch not in ("dynamic", "static"):
            yield f"batch: got {self.batch!r}, expected dynamic or static"
        elif self.batch == "static" and self.is_registered:
            yield "batch: static is of a quantized program of your own; a registered model takes any number of images"
        for shape in self.input_shapes or ():
            if len(shape) < 2 or min(shape) < 1:
                yield f"input_shape: got {','.join(map(str, shape))}, expected sizes of at least 1, as 1,3,224,224"
        if self.out is not None and (problem := file_problem(self.out)) is not None:
            yield f"out: {problem}"
