"""The options that several commands share, grouped by subject. A command's configuration is made of these groups.

If an option differs for one command (another default, several values in place of one), that command's configuration
redeclares it with `varied`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from quantvm.choices import (
    DATA_FORMS,
    ENGINES,
    FLOWS,
    NUMERICS,
    POLICIES,
    SCHEMES,
    ClassMap,
    Engine,
    Interpolation,
    OnBadImage,
    Scheme,
)
from quantvm.options import checks, reading
from quantvm.options.option import Options, documented, option

if TYPE_CHECKING:
    from quantvm.data.preprocess import ImageOptions
    from quantvm.models.quantization import Quantization

QUANTIZATION = "Quantization and compilation"


@documented
@dataclass(frozen=True)
class WeightOptions(Options):
    """Where the weights of registered models come from."""

    weights: str = option(
        "auto",
        "auto: an installed package, a cache, or a download. DIR: a folder with the official files. random: seeded "
        "weights; accuracy then means nothing, parity and latency do. torchvision-quantized: a published quantized "
        "checkpoint.",
        metavar="auto|DIR|random|torchvision-quantized",
        check=checks.policy_or_folder(POLICIES),
    )

    def __post_init__(self) -> None:
        """Accepts a path in place of text, for callers in Python."""
        super().__post_init__()
        texts_for_paths(self, "weights")


@documented
@dataclass(frozen=True)
class QuantizationOptions(Options):
    """How PyTorch quantizes."""

    panel = QUANTIZATION

    scheme: Scheme = option(
        "per-channel",
        "How weights are quantized.",
        metavar="|".join(SCHEMES),
        check=checks.one_of(SCHEMES),
    )
    engine: Engine = option(
        "fbgemm",
        "The PyTorch engine whose int8 arithmetic is the reference: of a quantized model of your own, the one that it "
        "was quantized for.",
        metavar="|".join(ENGINES),
        check=checks.one_of(ENGINES),
    )

    def quantization(self, flow: str) -> Quantization:
        """Returns how PyTorch quantizes by a flow."""
        from quantvm.models.quantization import Quantization

        return Quantization(self.scheme, self.engine, flow)


@documented
@dataclass(frozen=True)
class FlowOptions(Options):
    """Which of its flows PyTorch quantizes with."""

    panel = QUANTIZATION

    flow: str | None = option(
        None,
        "How PyTorch quantizes. Without it: eager, or fx where a model cannot be quantized by that.",
        metavar="|".join(FLOWS),
        check=checks.one_of(FLOWS),
    )


@documented
@dataclass(frozen=True)
class CompilationOptions(Options):
    """What TVM compiles for."""

    panel = QUANTIZATION

    target: str = option("native", "See: quantvm list targets.", metavar="TARGET")
    threads: int | None = option(
        None,
        "Threads of both engines; the code reproduces PyTorch's results with so many. Without it: TVM_NUM_THREADS, or "
        "else the physical cores.",
        metavar="T",
        check=checks.at_least(1),
    )

    def wrong_combinations(self) -> Iterator[str]:
        """Yields what is wrong with the thread count in the environment, if it is used."""
        yield from super().wrong_combinations()
        if self.threads is None and (problem := checks.threads_of_environment()[1]) is not None:
            yield f"threads: {problem}"


@documented
@dataclass(frozen=True)
class NumericsOptions(Options):
    """Which arithmetic TVM follows."""

    panel = QUANTIZATION

    numerics: str = option(
        "torch",
        "Arithmetic of TVM. torch: the same bits as the engine, and for .pt2, .onnx and .tflite the results of their "
        "own runtime. integer: no float between quantize and dequantize; integer:to_even and integer:away round ties "
        "otherwise than upward.",
        metavar="torch|integer",
        check=checks.one_of(NUMERICS),
    )


@documented
@dataclass(frozen=True)
class BatchOptions(Options):
    """How images go through a network."""

    panel = QUANTIZATION

    batch_size: int = option(8, "Images in one call of a network.", metavar="N", check=checks.at_least(1))


@documented
@dataclass(frozen=True)
class LabelOptions(Options):
    """Which labelled images are evaluated."""

    panel = "Data"

    num_samples: int | None = option(
        None, "Evaluate N images, a seeded choice. Without it: all.", metavar="N", check=checks.at_least(1)
    )
    class_map: ClassMap = option(
        "wnid",
        "How folder names become classes: by ImageNet's table, or, for models of your own, by sorted order.",
        metavar="wnid|sorted",
        check=checks.one_of(get_args(ClassMap)),
    )
    on_bad_image: OnBadImage = option(
        "stop",
        "Whether an unreadable image stops the run before it begins, or is left out and listed.",
        metavar="stop|skip",
        check=checks.one_of(get_args(OnBadImage)),
    )


@documented
@dataclass(frozen=True)
class DataOptions(Options):
    """The images."""

    panel = "Data"

    data: str | None = option(
        None,
        "sample, imagenet-1k, imagenet-samples, imagenetv2 or imagenette; or a folder or archive that holds ImageNet "
        "in one of the forms of: quantvm list forms. Without it: sample.",
        metavar="NAME|DIR|FILE",
    )
    labels: str | None = option(
        None,
        "A list of the images' names and classes, for a folder that has none, or several that disagree. Without it: "
        "what the folder holds.",
        metavar="FILE",
    )
    form: str | None = option(
        None,
        "The form in which ImageNet lies in the folder; see: quantvm list forms. Without it: recognized.",
        metavar="NAME",
        check=checks.one_of(DATA_FORMS),
    )
    calibration_data: str | None = option(
        None,
        "Images to calibrate on. Without it: the data's train part, or else a part of the data's own images.",
        metavar="NAME|DIR",
    )
    calibration_samples: int = option(
        1000, "Calibrate on N images, or all there are.", metavar="N", check=checks.at_least(1)
    )
    seed: int = option(0, "Of every random choice.", metavar="S", check=checks.at_least(0))

    def __post_init__(self) -> None:
        """Accepts paths in place of texts, for callers in Python."""
        super().__post_init__()
        texts_for_paths(self, "data", "labels", "calibration_data")


@documented
@dataclass(frozen=True)
class OwnImageOptions(Options):
    """How images become the input of a model of your own."""

    panel = "Images of a model of your own (a file or a factory)"

    input_shape: tuple[int, ...] | None = option(
        None,
        "What your model takes, where a file or factory does not say it. Without it: 1,3,224,224.",
        metavar="N,C,H,W",
        reading=reading.SHAPE,
        check=checks.shape,
    )
    resize: int | None = option(
        None, "Length of the shorter side before the crop. Without it: 256/224 of the crop.", metavar="PIXELS",
        check=checks.at_least(1),
    )  # fmt: skip
    crop: int | None = option(
        None, "Side of the square. Without it: your model's input size.", metavar="PIXELS", check=checks.at_least(1)
    )
    interpolation: Interpolation = option(
        "bilinear", "How images are scaled.", metavar="bilinear|bicubic", check=checks.one_of(get_args(Interpolation))
    )
    mean: tuple[float, ...] = option(
        (0.485, 0.456, 0.406), "Subtracted from pixels, which are 0 to 1.", metavar="R,G,B", reading=reading.REALS,
        check=checks.colours,
    )  # fmt: skip
    std: tuple[float, ...] = option(
        (0.229, 0.224, 0.225), "Divides them then.", metavar="R,G,B", reading=reading.REALS,
        check=checks.colour_divisors,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Accepts lists in place of tuples."""
        super().__post_init__()
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))

    def wrong_combinations(self) -> Iterator[str]:
        """Yields what is wrong if the crop is not the square that the model takes."""
        yield from super().wrong_combinations()
        sizes = self.input_shape
        if sizes is not None and checks.shape(sizes) is None and self.crop is not None and sizes[-1] != self.crop:
            yield f"crop: got {self.crop}, but the input shape is {','.join(map(str, sizes))}; leave one of the two out"

    def image_options(self) -> ImageOptions:
        """Returns how images become the input of files and factories."""
        from quantvm.data.preprocess import ImageOptions

        return self.shared(ImageOptions)


@documented
@dataclass(frozen=True)
class CheckOptions(Options):
    """The least share of int8 with which a model passes."""

    panel = "Checks and output"

    min_int8_macs: float | None = option(
        None,
        "Exit 1 if less than this share, 0 to 1, of the multiply-adds run in int8 kernels.",
        metavar="X",
        check=checks.within(0, 1, "a share from 0 to 1"),
    )


@documented
@dataclass(frozen=True)
class OutputOptions(Options):
    """Where results are written."""

    out: Path | None = option(
        None, "The run folder. Without it: runs/<time>-<id>.", metavar="DIR", check=checks.folder_to_write
    )

    def __post_init__(self) -> None:
        """Accepts a path in place of text."""
        super().__post_init__()
        paths_for_texts(self, "out")


def tuples(options: Options, *names: str, once: bool = False) -> None:
    """Lets a caller in Python give one value, or a list, for options that are tuples.

    Args:
        options: a group that is being made.
        names: of the options.
        once: whether duplicates are removed.
    """
    for name in names:
        value = getattr(options, name)
        values = (value,) if isinstance(value, str | int) else tuple(value)
        object.__setattr__(options, name, tuple(dict.fromkeys(values)) if once else values)


def texts_for_paths(options: Options, *names: str) -> None:
    """Lets a caller in Python give paths for options that are texts."""
    for name in names:
        value: Any = getattr(options, name)
        if isinstance(value, os.PathLike):
            object.__setattr__(options, name, os.fspath(value))


def paths_for_texts(options: Options, *names: str) -> None:
    """Lets a caller in Python give texts for options that are paths."""
    for name in names:
        value: Any = getattr(options, name)
        if isinstance(value, str):
            object.__setattr__(options, name, Path(value))
