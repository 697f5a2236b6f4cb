"""The options about models that all jobs share: which models, with which weights, how quantized, on which images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from quantvm.options import reading
from quantvm.options.groups import (
    BatchOptions,
    CompilationOptions,
    DataOptions,
    FlowOptions,
    LabelOptions,
    OwnImageOptions,
    QuantizationOptions,
    WeightOptions,
    tuples,
)
from quantvm.options.option import documented, option
from quantvm.workload.model_words import is_registered, problem_of_word

ZOO = "Models that are quantized first: of the registry, or float ones of a factory"
"""The help's heading, in commands for one model, of options that only such models have."""


@documented
@dataclass(frozen=True)
class WorkloadOptions(
    WeightOptions, OwnImageOptions, QuantizationOptions, CompilationOptions, BatchOptions, LabelOptions, DataOptions
):
    """Models, their weights and images, for any job."""

    models: tuple[str, ...] = option(
        (),
        "A model to evaluate; repeat it, or separate names by commas. A name of: quantvm list models; a quantized "
        "model of your own as a file (.pt of TorchScript, .pt2, .onnx, .tflite); or a function that returns it, as "
        "pkg.mod:name. Without it: every registered model whose weights can be had.",
        metavar="NAME|FILE|FACTORY",
        flags=("--model",),
        reading=reading.NAMES,
    )

    def __post_init__(self) -> None:
        """Accepts one name in place of a tuple."""
        super().__post_init__()
        tuples(self, "models")


@documented
@dataclass(frozen=True)
class OneModelOptions(WeightOptions, DataOptions, QuantizationOptions, FlowOptions, CompilationOptions):
    """One model: a quantized program of the user's own, or a float one that is quantized."""

    panels: ClassVar = {"weights": ZOO, "Data": ZOO, "scheme": ZOO, "flow": ZOO}

    model: str = option(
        text="A quantized model as a file (.pt of TorchScript, .pt2, .onnx, .tflite), a factory pkg.mod:name that "
        "returns a model, or a name of: quantvm list models. What is float, registered or made by a factory, is "
        "quantized first.",
        metavar="MODEL",
        is_argument=True,
        by_place=True,
        check=problem_of_word,
    )

    @property
    def is_registered(self) -> bool:
        """Whether the model is a registered name, and there is no file of that name."""
        return is_registered(self.model)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """The shapes of the inputs, for a model that does not say them; None for 1,3,224,224."""
        return None

    def workload(self, **others: Any) -> WorkloadOptions:
        """Returns the options for quantizing the model; `others` replaces options."""
        # Only calibration reads images; without calibration data it takes them from the data set.
        taken = {"num_samples": None if self.data is None else self.calibration_samples}
        shapes = self.shapes
        return self.shared(
            WorkloadOptions, models=(self.model,), **({"input_shape": shapes[0] if shapes else None} | taken | others)
        )
