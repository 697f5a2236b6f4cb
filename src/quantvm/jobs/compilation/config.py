"""What one compilation is asked to do: ``CompileConfig``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantvm.options import checks, reading
from quantvm.options.groups import (
    QUANTIZATION,
    CheckOptions,
    NumericsOptions,
    OutputOptions,
    OwnImageOptions,
    paths_for_texts,
)
from quantvm.options.option import documented, option, varied
from quantvm.workload.options import OneModelOptions


@documented
@dataclass(frozen=True)
class CompileConfig(OneModelOptions, NumericsOptions, CheckOptions):
    """The options of one compilation; ``quantvm compile`` has one of the same name for each field."""

    panel = CheckOptions.panel
    panels: ClassVar = {**OneModelOptions.panels, "out": "", "input_shapes": "", "batch": QUANTIZATION}

    out: Path | None = varied(
        OutputOptions, "out", metavar="FILE", flags=("--output", "-o"), check=checks.file_to_write,
        help="The model file, as resnet18.qvm. Without it: nothing is written.",
    )  # fmt: skip
    input_shapes: tuple[tuple[int, ...], ...] | None = varied(
        OwnImageOptions, "input_shape",
        called="input_shape", flags=("--input-shape",), reading=reading.SHAPES, check=checks.shapes,
        help="Input of a model that does not say it, as a TorchScript file; repeat it for each input. Without it: "
        "1,3,224,224. The code takes any number of images.",
    )  # fmt: skip
    batch: str = option(
        "dynamic",
        "Of a program of your own: code for any number of images, or for that of --input-shape only.",
        metavar="dynamic|static",
        check=checks.one_of(("dynamic", "static")),
    )
    audit: bool = option(
        False, "Count the dot-product instructions in the machine code of every kernel.", flags=("--audit",)
    )
    verify: bool = option(
        True,
        "Compare the compiled code's outputs with those of the model's own framework, at two batch sizes.",
        flags=("--verify/--no-verify",),
    )

    def __post_init__(self) -> None:
        """Accepts a path in place of text."""
        super().__post_init__()
        paths_for_texts(self, "out")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """The shapes of the inputs, for a model that does not say them; None for 1,3,224,224."""
        return self.input_shapes

    def wrong_combinations(self) -> Iterator[str]:
        """Yields what is wrong with `batch` for this model."""
        yield from super().wrong_combinations()
        if self.batch == "static" and self.is_registered:
            yield "batch: static is of a quantized program of your own; a registered model takes any number of images"
