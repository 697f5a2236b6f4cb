"""The jobs as Python functions: each takes the options of its command by name, or all of them as a config.

The options are typed out here for editors and `help()`. Names, types and defaults are those of the configuration
(`RunConfig`, ...), which explains each option; a test compares them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from quantvm.errors import ConfigError, missing_package_named
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.evaluate import evaluate_models
from quantvm.jobs.evaluation.observer import SILENT_OBSERVER, Observer
from quantvm.jobs.latency.bench import measure_latency
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.layer_differences.config import DiffConfig
from quantvm.jobs.layer_differences.diff import compare_layers
from quantvm.jobs.tuning.config import TuneConfig
from quantvm.jobs.tuning.tune import tune_schedules
from quantvm.options.option import Options
from quantvm.progress import SILENT, Progress

if TYPE_CHECKING:
    import os

    from quantvm.choices import ClassMap, Engine, Interpolation, OnBadImage, Scheme
    from quantvm.jobs.evaluation.schema import RunResult
    from quantvm.jobs.latency.schema import BenchResult
    from quantvm.jobs.layer_differences.schema import DiffResult
    from quantvm.jobs.tuning.schema import TuneResult

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _takes(kind: type[Options]) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Returns a decorator: callers give a config, or its options by name; the function always gets a config."""

    def decorator(function: Callable[Given, Result]) -> Callable[Given, Result]:
        others = {"progress", "observer", "command"}

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            bound = inspect.signature(function).bind(*args, **given).arguments
            options = {name: value for name, value in bound.items() if name not in {"config", *others}}
            config = bound.get("config")
            if config is not None and options:
                raise ConfigError(
                    f"{function.__name__}: got a config and also {', '.join(sorted(options))}; give one or the other"
                )
            with missing_package_named():
                config = kind(**options) if config is None else config
                return function(config, **{name: bound[name] for name in others if name in bound})  # type: ignore[arg-type]

        call.__doc__ = f"{inspect.getdoc(function)}\n\n{inspect.getdoc(kind)}"
        return call

    return decorator


@_takes(RunConfig)
def evaluate(
    config: RunConfig | None = None,
    *,
    models: Sequence[str] | str = (),
    weights: str | os.PathLike[str] = "auto",
    input_shape: Sequence[int] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    scheme: Scheme = "per-channel",
    engine: Engine = "fbgemm",
    flows: Sequence[str] | str = (),
    numerics: Sequence[str] | str = ("torch",),
    target: str = "native",
    threads: int | None = None,
    batch_size: int = 8,
    data: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    form: str | None = None,
    num_samples: int | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    calibration_samples: int = 1000,
    seed: int = 0,
    class_map: ClassMap = "wnid",
    on_bad_image: OnBadImage = "stop",
    fp32: str | int = "all",
    shard_size: int = 512,
    image_cache: str | os.PathLike[str] = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    resume: Path | str | None = None,
    check_parity: str | None = None,
    min_top1: float | None = None,
    min_int8_macs: float | None = None,
    out: Path | str | None = None,
    progress: Progress = SILENT,
    observer: Observer = SILENT_OBSERVER,
    command: str = "quantvm.evaluate",
) -> RunResult:
    """Returns how the models' accuracy and raw outputs compare between PyTorch and TVM, as ``quantvm run`` does.

    If a model fails, its row says so and the other models go on. After an interruption by Ctrl-C the result holds
    what was done until then. If `out` is set, the run folder is written after each model.

    Args:
        config: all options; or leave it out and give them by name, as in ``evaluate(models=("resnet18",), seed=1)``.
        progress: where long work reports to.
        observer: told about each model as it is done.
        command: what run.json names as the command.

    Raises:
        QuantvmError: before any model is evaluated, if an option, a name, an image or the weights of a model that was
            named is wrong, or if no model at all can be evaluated.
    """
    assert config is not None  # made of the options
    return evaluate_models(config, progress=progress, observer=observer, command=command)


@_takes(BenchConfig)
def bench(
    config: BenchConfig | None = None,
    *,
    models: Sequence[str] | str = (),
    input_shape: Sequence[int] | None = None,
    engines: Sequence[str] | str = (),
    batch_sizes: Sequence[int] | int = (1,),
    threads: Sequence[int] | int = (),
    rounds: int = 5,
    seconds: float = 2.0,
    weights: str | os.PathLike[str] = "auto",
    data: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    form: str | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    calibration_samples: int = 64,
    seed: int = 0,
    scheme: Scheme = "per-channel",
    flow: str | None = None,
    tvm_engine: Engine = "fbgemm",
    target: str = "native",
    profile: bool = False,
    out: Path | str | None = None,
    progress: Progress = SILENT,
    command: str = "quantvm.bench",
) -> BenchResult:
    """Returns how fast the engines run the models in int8, as ``quantvm bench`` does.

    If an engine is missing or fails, its row says so and the others go on. TVM is timed only where its
    outputs have the bits of the PyTorch engine that it reproduces. After an interruption by Ctrl-C the result holds
    what was done until then. If `out` is set, bench.json is written after each row.

    Args:
        config: all options; or leave it out and give them by name, as in ``bench(models=("resnet18",), seconds=1)``.
        progress: where long work reports to; silent while anything is measured.
        command: what bench.json names as the command.

    Raises:
        QuantvmError: before any model is measured, if an option, a name, an image or the weights of a model that was
            named is wrong, or if no model or no engine at all can be measured.
    """
    assert config is not None  # made of the options
    return measure_latency(config, progress=progress, command=command)


@_takes(DiffConfig)
def diff(
    config: DiffConfig | None = None,
    *,
    model: str | None = None,
    weights: str | os.PathLike[str] = "auto",
    data: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    form: str | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    calibration_samples: int = 1000,
    seed: int = 0,
    scheme: Scheme = "per-channel",
    engine: Engine = "fbgemm",
    flow: str | None = None,
    target: str = "native",
    threads: int | None = None,
    reference: str | None = None,
    actual: str = "tvm",
    num_samples: int = 4,
    input_shape: Sequence[int] = (1, 3, 224, 224),
    waterfall: bool = False,
    out: Path | str | None = None,
    save_repro: Path | str | None = None,
    progress: Progress = SILENT,
) -> DiffResult:
    """Returns how the integers of every layer differ between two runs of one model, as ``quantvm diff`` does.

    Each layer is compared in the run as a whole, and also computed alone from the reference's inputs: this separates
    a layer's own differences from inherited ones. For layers that have their own, rules are tried: how ties are
    rounded, where the zero point is added, and so on (`quantvm.layer_rules`). A pair of rules that gives all integers
    of both sides is the cause.

    Args:
        config: all options; or leave it out and give them by name, as in ``diff(model="resnet18", num_samples=2)``.
        progress: where long work reports to.

    Raises:
        QuantvmError: an option, the model or its weights are wrong, or it cannot be compiled.
    """
    assert config is not None  # made of the options
    return compare_layers(config, progress=progress)


@_takes(TuneConfig)
def tune(
    config: TuneConfig | None = None,
    *,
    models: Sequence[str] | str = (),
    threads: Sequence[int] | int = (),
    input_shapes: Sequence[Sequence[int]] = ((1, 3, 224, 224),),
    target: str = "native",
    out: Path | str | None = None,
    progress: Progress = SILENT,
) -> TuneResult:
    """Returns the fastest schedules of the models' convolutions on this CPU, as ``quantvm tune`` does.

    They are written into a file, where they replace older records of the same convolutions. Later compilations read the
    user's own file, which is the default.

    Args:
        config: all options; or leave it out and give them by name, as in ``tune(models=("resnet18",), threads=1)``.
        progress: where long work reports to.

    Raises:
        QuantvmError: an option or a model is wrong, the file cannot be written, or this machine cannot run the code.
    """
    assert config is not None  # made of the options
    return tune_schedules(config, progress=progress)
