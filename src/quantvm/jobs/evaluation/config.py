"""What one evaluation is asked to do: ``RunConfig``, its checks and its resolved values."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from quantvm.data.check import OnBadImage
from quantvm.data.loading import ClassMap
from quantvm.data.preprocess import ImageOptions, Interpolation
from quantvm.errors import ConfigError
from quantvm.models.quantize import FLOWS, Engine, Scheme
from quantvm.models.weights import POLICIES
from quantvm.numerics.integer import NUMERICS
from quantvm.score.parity import Tolerance
from quantvm.storage.output_files import folder_problem

CHOICES: dict[str, tuple[str, ...]] = {
    "interpolation": get_args(Interpolation),
    "class_map": get_args(ClassMap),
    "on_bad_image": get_args(OnBadImage),
    "scheme": get_args(Scheme),
    "engine": get_args(Engine),
}


@dataclass(frozen=True)
class RunConfig:
    """The options of one evaluation; ``quantvm run`` has one of the same name for each field.

    Attributes:
        models: names of registered models, files, or factories as ``pkg.mod:name``; empty for every registered model
            whose weights can be had.
        input_shape: of files and factories that do not say it; None for 1,3,224,224, or as `crop` says.
        resize, crop, interpolation, mean, std: how images become the input of files and factories: the shorter side
            and the square cut from it, in pixels (None: by the input's size), and what is subtracted from and divides
            each of R, G, B.
        data: a named data set or a folder of labelled images; None for the embedded sample.
        calibration_data: a folder or `sample`; None for the data set's train part, or else a part of its images.
        calibration_samples: how many images the quantized ranges are calibrated on, at most.
        num_samples: how many images are evaluated, a seeded choice; None for all.
        seed: of every random choice.
        class_map: how folder names map to classes: `wnid` by the ImageNet table, `sorted` by their order.
        on_bad_image: whether an unreadable image stops the run or is left out of it.
        weights: `auto`, `random`, `torchvision-quantized`, or a folder that holds the official files.
        scheme: how weights are quantized: `per-channel` or `per-tensor`.
        engine: the PyTorch engine whose int8 arithmetic is the reference.
        flows: how PyTorch quantizes, each in a row of its own: `eager`, `fx` or `pt2e`; empty for the first of these by
            which each model can be quantized.
        numerics: what TVM follows, each in a row of its own: `torch`, the same bits as that engine; `integer`, no float
            between quantize and dequantize; `integer:to_even` and `integer:away` round its ties otherwise.
        target: what TVM compiles for; `native` is this machine.
        batch_size: images in one call of a network.
        threads: of both engines; None for TVM_NUM_THREADS, or else the physical cores.
        check_parity: None, `exact` or `lsb:N`: the greatest difference of raw outputs under which a model passes, with
            numerics torch; the others are not meant to give PyTorch's bits.
        min_top1: None, or the least top-1 accuracy of TVM, in percent, under which a model passes.
        min_int8_macs: None, or the least share of multiply-adds in int8 kernels, 0..1, under which a model passes.
        out: the run folder that is written; None to write nothing.
    """

    models: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    data: str | None = None
    calibration_data: str | None = None
    calibration_samples: int = 1000
    num_samples: int | None = None
    seed: int = 0
    class_map: ClassMap = "wnid"
    on_bad_image: OnBadImage = "stop"
    weights: str = "auto"
    scheme: Scheme = "per-channel"
    engine: Engine = "fbgemm"
    flows: tuple[str, ...] = ()
    numerics: tuple[str, ...] = ("torch",)
    target: str = "native"
    batch_size: int = 8
    threads: int | None = None
    check_parity: str | None = None
    min_top1: float | None = None
    min_int8_macs: float | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        """Takes what a caller in Python would naturally give: one name, a list of names, a path as text."""
        models = (self.models,) if isinstance(self.models, str) else tuple(self.models)
        object.__setattr__(self, "models", models)
        for name in ("flows", "numerics"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(dict.fromkeys(value)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        for name in ("data", "calibration_data", "weights"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))

    def problems(self) -> list[str]:
        """Returns one sentence for every option whose value cannot be, in the order of the options."""
        return [*self._wrong_choices(), *self._wrong_numbers(), *self._wrong_images(), *self._wrong_combinations()]

    def _wrong_choices(self) -> Iterator[str]:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                yield f"{name}: got '{value}', expected {' or '.join(known)}"
        if not set(self.flows) <= set(FLOWS):
            yield f"flow: got '{','.join(self.flows)}', expected one or more of {', '.join(FLOWS)}"
        if not self.numerics or not set(self.numerics) <= set(NUMERICS):
            yield f"numerics: got '{','.join(self.numerics)}', expected one or more of {', '.join(NUMERICS)}"
        if self.weights not in POLICIES and not Path(self.weights).expanduser().is_dir():
            yield f"weights: got '{self.weights}', expected {', '.join(POLICIES)} or a folder that exists"

    def _wrong_numbers(self) -> Iterator[str]:
        for name in ("calibration_samples", "num_samples", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: got {value}, expected at least 1"
        if self.seed < 0:
            yield f"seed: got {self.seed}, expected 0 or more"
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 100:
            yield f"min_top1: got {self.min_top1}, expected a percentage from 0 to 100"
        if self.min_int8_macs is not None and not 0 <= self.min_int8_macs <= 1:
            yield f"min_int8_macs: got {self.min_int8_macs}, expected a share from 0 to 1"
        if self.threads is None:
            yield from threads_of_environment()[1]

    def _wrong_images(self) -> Iterator[str]:
        shape = self.input_shape
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: got {value}, expected at least 1"
        if shape is not None and (len(shape) < 2 or min(shape) < 1):
            yield f"input_shape: got {','.join(map(str, shape))}, expected sizes of at least 1, as 1,3,224,224"
        elif shape is not None and self.crop is not None and shape[-1] != self.crop:
            yield f"crop: got {self.crop}, but the input shape is {','.join(map(str, shape))}; leave one of the two out"
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or (name == "std" and not all(values)):
                yield f"{name}: got {','.join(map(str, values))}, expected three numbers, for R, G and B"

    def image_options(self) -> ImageOptions:
        """Returns how images become the input of files and factories."""
        return ImageOptions(self.resize, self.crop, self.interpolation, self.mean, self.std)

    def _wrong_combinations(self) -> Iterator[str]:
        if self.check_parity is not None:
            try:
                Tolerance.parse(self.check_parity)
            except ConfigError as error:
                yield str(error)
        if self.min_top1 is not None and self.weights == "random":
            yield "min_top1: with random weights accuracy means nothing; leave one of the two out"
        if self.out is not None and (problem := folder_problem(self.out)) is not None:
            yield f"out: {problem}"

    def as_json(self) -> dict[str, Any]:
        """Returns the options as run.json holds them."""
        values = dataclasses.asdict(self)
        for name in ("models", "flows", "numerics", "mean", "std"):
            values[name] = list(values[name])
        values["input_shape"] = None if self.input_shape is None else list(self.input_shape)
        values["out"] = None if self.out is None else str(self.out)
        return values


def with_engine(config: RunConfig, engine: str | None) -> RunConfig:
    """Returns the options with the engine that a model says it is for; None: it says nothing."""
    return config if engine is None else dataclasses.replace(config, engine=engine)  # type: ignore[arg-type]


def threads_of_environment() -> tuple[int | None, list[str]]:
    """Returns what TVM_NUM_THREADS says, and the problems with it."""
    text = os.environ.get("TVM_NUM_THREADS", "").strip()
    if not text:
        return None, []
    if not text.isdecimal() or int(text) < 1:
        return None, [f"threads: the environment has TVM_NUM_THREADS='{text}', expected a whole number of at least 1"]
    return int(text), []


def resolve_threads(asked: int | None, physical_cores: int) -> int:
    """Returns the number of threads of both engines: as asked, else TVM_NUM_THREADS, else the physical cores."""
    return asked or threads_of_environment()[0] or physical_cores


def raise_problems(problems: list[str]) -> None:
    """Raises one ConfigError that lists all the problems, if there are any."""
    if problems:
        count = f"{len(problems)} wrong option{'s' if len(problems) > 1 else ''}"
        raise ConfigError("\n".join([f"{count}:", *(f"  {problem}" for problem in problems)]))
