"""The options of one comparison of layers, and the sides that can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quantvm.choices import ENGINES, NUMERICS
from quantvm.options import checks
from quantvm.options.groups import OutputOptions, OwnImageOptions, paths_for_texts
from quantvm.options.option import documented, option, varied
from quantvm.storage.output_files import file_problem
from quantvm.workload.options import ZOO, OneModelOptions, WorkloadOptions

SIDES = (
    "torch", *(f"torch:{engine}" for engine in ENGINES), "tvm", *(f"tvm:{numerics}" for numerics in NUMERICS), "qdq",
    "onnxruntime", "fp32",
)  # fmt: skip
"""What can be compared: PyTorch under an engine, TVM under a numerics, the Relax form in float, ONNX Runtime, and the
float model."""


@documented
@dataclass(frozen=True)
class DiffConfig(OneModelOptions):
    """The options of one comparison; ``quantvm diff`` has one of the same name for each field."""

    panels: ClassVar = {**OneModelOptions.panels, "waterfall": ZOO}

    reference: str | None = option(
        None,
        "What is right: torch, torch:ENGINE, tvm, tvm:NUMERICS, qdq (the imported program in float), "
        "onnxruntime, fp32. Without it: torch; of an ONNX file onnxruntime where that is installed, else qdq.",
        metavar="SIDE",
        check=checks.one_of(SIDES),
    )
    actual: str = option("tvm", "What is compared with it: likewise.", metavar="SIDE", check=checks.one_of(SIDES))
    num_samples: int = option(4, "Images that are compared.", metavar="N", check=checks.at_least(1))
    input_shape: tuple[int, ...] = varied(
        OwnImageOptions, "input_shape", default=(1, 3, 224, 224),
        help="Input of a TorchScript file, which does not say it. Without it: 1,3,224,224.",
    )  # fmt: skip
    waterfall: bool = option(
        False,
        "Also the accuracy and output error of fp32, floats between dequantize and quantize, PyTorch's int8 and TVM's, "
        "on the same images.",
        flags=("--waterfall",),
    )
    out: Path | None = varied(
        OutputOptions, "out", help="A folder for diff.json and layers.csv. Without it: nothing is written."
    )
    save_repro: Path | None = option(
        None,
        "A pytest file, as test_layer.py, that shows the first layer's own difference alone, its inputs embedded: of a "
        "quantized module one or two operators on the smallest part of them. Without it: none is written.",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        """Accepts paths in place of text."""
        super().__post_init__()
        paths_for_texts(self, "out", "save_repro")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of the input, one image, for a model that does not say it."""
        return ((1, *self.input_shape[1:]),)

    def workload(self, **others: Any) -> WorkloadOptions:
        """Returns the options for quantizing the model: calibration may leave out the images that are compared."""
        return super().workload(**({"num_samples": self.num_samples, "batch_size": 1} | others))

    def wrong_combinations(self) -> Iterator[str]:
        """Yields what is wrong with the combination of the two sides, or with the options for them."""
        yield from super().wrong_combinations()
        if _same_side(self.reference, self.actual):
            yield f"actual: got '{self.actual}', which is the reference, too; name another side"
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
        """Whether the float model is compared, too."""
        return self.waterfall or "fp32" in (self.reference, self.actual)

    @property
    def missing_float_model(self) -> str:
        """The problem if the float model is needed but not known."""
        wanted = "waterfall" if self.waterfall else "fp32"
        return (
            f"{wanted}: {self.model} does not hold the float model that it was quantized from; name a model of quantvm "
            "list models, or a factory of a float module"
        )


def _same_side(reference: str | None, actual: str) -> bool:
    """Whether two words name the same side for every model."""
    if reference is None:  # the model's own framework
        return actual in ("torch", "onnxruntime")
    usual = "tvm:integer:upward"
    return reference == actual or {reference, actual} == {"tvm:integer", usual}
