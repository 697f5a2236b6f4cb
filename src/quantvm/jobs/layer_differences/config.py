"""The options of one comparison of layers, and what its sides are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantvm.jobs.compilation.config import CompileConfig
from quantvm.numerics.integer import NUMERICS
from quantvm.numerics.torch_engines import ENGINES
from quantvm.storage.output_files import file_problem, folder_problem

SIDES = (
    "torch", *(f"torch:{engine}" for engine in ENGINES), "tvm", *(f"tvm:{numerics}" for numerics in NUMERICS), "qdq",
    "onnxruntime", "fp32",
)  # fmt: skip
"""What can be compared: PyTorch under an engine, TVM under a numerics, the Relax form in float, ONNX Runtime, and the
float model."""


@dataclass(frozen=True)
class DiffConfig:
    """The options of one comparison; ``quantvm diff`` has one of the same name for each field.

    Attributes:
        model: a file, a factory as ``pkg.mod:name``, or the name of a registered model. What is float, registered or
            made by a factory, is quantized as in the main job.
        reference: what is right: one of `SIDES`. None: PyTorch; of an ONNX file ONNX Runtime where that is installed;
            else the imported program in float.
        actual: what is compared with it: one of `SIDES`.
        input_shape: of a TorchScript file.
        num_samples: images that are compared.
        waterfall: whether accuracy and output error are measured on the same images: of fp32, of floats between
            dequantize and quantize, of PyTorch and of TVM.
        weights, data, calibration_data, calibration_samples, seed, scheme, flow: of a registered model, as in
            CompileConfig.
        engine, target, threads: as in CompileConfig.
        out: a folder for diff.json and layers.csv; None to write nothing.
        save_repro: a pytest file that shows the first layer's own difference alone; None to write none.
    """

    model: str
    reference: str | None = None
    actual: str = "tvm"
    input_shape: tuple[int, ...] = (1, 3, 224, 224)
    num_samples: int = 4
    waterfall: bool = False
    weights: str = "auto"
    data: str | None = None
    calibration_data: str | None = None
    calibration_samples: int = 1000
    seed: int = 0
    scheme: Any = "per-channel"
    flow: str | None = None
    engine: Any = "fbgemm"
    target: str = "native"
    threads: int | None = None
    out: Path | None = None
    save_repro: Path | None = None

    def compile_config(self) -> CompileConfig:
        """Returns the options that making the quantized model needs."""
        return CompileConfig(
            model=self.model, input_shapes=((1, *self.input_shape[1:]),), weights=self.weights, data=self.data,
            calibration_data=self.calibration_data, calibration_samples=self.calibration_samples, seed=self.seed,
            scheme=self.scheme, flow=self.flow, engine=self.engine, target=self.target, threads=self.threads,
        )  # fmt: skip

    def problems(self) -> list[str]:
        """Returns one sentence for every option whose value cannot be."""
        return [*self._own_problems(), *self.compile_config().problems()]

    def _own_problems(self) -> Iterator[str]:
        for name in ("reference", "actual"):
            if getattr(self, name) not in (*SIDES, *((None,) if name == "reference" else ())):
                yield f"{name}: got '{getattr(self, name)}', expected one of {', '.join(SIDES)}"
        if _same_side(self.reference, self.actual):
            yield f"actual: got '{self.actual}', which is the reference, too; name another side"
        if self.num_samples < 1:
            yield f"num_samples: got {self.num_samples}, expected at least 1"
        if self.out is not None and (problem := folder_problem(self.out)) is not None:
            yield f"out: {problem}"
        if self.save_repro is not None:
            yield from self._repro_problems(self.save_repro)
        if self.needs_float_model and Path(self.model).is_file():
            yield self.missing_float_model

    def _repro_problems(self, path: Path) -> Iterator[str]:
        if path.suffix != ".py" or not path.stem.startswith("test_"):
            yield f"save_repro: got {path.name}, expected a name like test_layer.py, which pytest collects"
        if (problem := file_problem(path)) is not None:
            yield f"save_repro: {problem}"
        for name in ("reference", "actual"):
            if getattr(self, name) in ("qdq", "fp32"):
                side = getattr(self, name)
                yield f"save_repro: side {side} cannot be called alone; compare torch, onnxruntime or tvm"

    @property
    def needs_float_model(self) -> bool:
        """Whether the model that was quantized is compared, too."""
        return self.waterfall or "fp32" in (self.reference, self.actual)

    @property
    def missing_float_model(self) -> str:
        """What is wrong where it is needed and not at hand."""
        wanted = "waterfall" if self.waterfall else "fp32"
        return (
            f"{wanted}: {self.model} does not hold the float model that it was quantized from; name a model of quantvm "
            "list models, or a factory of a float module"
        )


def _same_side(reference: str | None, actual: str) -> bool:
    """Whether two words mean one side, whatever the model is."""
    if reference is None:  # the framework that the model is of
        return actual in ("torch", "onnxruntime")
    usual = "tvm:integer:upward"
    return reference == actual or {reference, actual} == {"tvm:integer", usual}
