"""``quantvm diff``: which layers two runs of one quantized model differ in, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import ConfigError
from quantvm.evaluate.compile_config import CompileConfig
from quantvm.evaluate.compiling import quantize_only_model
from quantvm.evaluate.config import raise_problems, resolve_threads
from quantvm.evaluate.layer_parity import RULES, LayerCount, first_difference
from quantvm.evaluate.plan import prepare
from quantvm.evaluate.stages import Stages
from quantvm.integer_numerics import NUMERICS
from quantvm.numerics import ENGINES
from quantvm.progress import SILENT, Progress
from quantvm.report.diff_schema import DiffResult, DiffRow, LayerRow
from quantvm.report.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from quantvm.frontend import LayeredProgram

SIDES = (
    "torch", *(f"torch:{engine}" for engine in ENGINES), "tvm", *(f"tvm:{numerics}" for numerics in NUMERICS), "qdq",
)  # fmt: skip
"""What can be compared: PyTorch under an engine, TVM under a numerics, and the Relax form in float."""


@dataclass(frozen=True)
class DiffConfig:
    """The options of one comparison; ``quantvm diff`` has one of the same name for each field.

    Attributes:
        model: a saved TorchScript file, or the name of a registered model, which is quantized as in the main job.
        reference: what is right: one of `SIDES`.
        actual: what is compared with it: one of `SIDES`.
        input_shape: of a TorchScript file.
        num_samples: images that are compared.
        weights, data, calibration_data, calibration_samples, seed, scheme: of a registered model, as in CompileConfig.
        engine, target, threads: as in CompileConfig.
        out: a folder for diff.json and layers.csv; None to write nothing.
    """

    model: str
    reference: str = "torch"
    actual: str = "tvm"
    input_shape: tuple[int, ...] = (1, 3, 224, 224)
    num_samples: int = 4
    weights: str = "auto"
    data: str | None = None
    calibration_data: str | None = None
    calibration_samples: int = 1000
    seed: int = 0
    scheme: Any = "per-channel"
    engine: Any = "fbgemm"
    target: str = "native"
    threads: int | None = None
    out: Path | None = None

    def compile_config(self) -> CompileConfig:
        """Returns the options that making the quantized model needs."""
        return CompileConfig(
            model=self.model, input_shapes=((1, *self.input_shape[1:]),), weights=self.weights, data=self.data,
            calibration_data=self.calibration_data, calibration_samples=self.calibration_samples, seed=self.seed,
            scheme=self.scheme, engine=self.engine, target=self.target, threads=self.threads,
        )  # fmt: skip

    def problems(self) -> list[str]:
        """Returns one sentence for every option whose value cannot be."""
        return [*self._own_problems(), *self.compile_config().problems()]

    def _own_problems(self) -> Iterator[str]:
        for name in ("reference", "actual"):
            if getattr(self, name) not in SIDES:
                yield f"{name}: got '{getattr(self, name)}', expected one of {', '.join(SIDES)}"
        if self.num_samples < 1:
            yield f"num_samples: got {self.num_samples}, expected at least 1"
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            yield f"out: {self.out} is a file, expected a folder; name another"


def diff(
    config: DiffConfig | None = None, *, progress: Progress = SILENT, stages: Stages | None = None, **options: Any
) -> DiffResult:
    """Returns how the integers of every layer differ between two runs; ``quantvm diff`` calls this.

    Each layer is compared in the run as a whole, and where the actual side is TVM also computed alone from the
    reference's inputs, so that an inherited difference is told from a layer's own. Where layers have differences of
    their own, other rules are tried on them, and the one that gives all of the reference's integers is the cause.

    Args:
        config: the options; or leave it out and give them by name, as in ``diff(model="resnet18", num_samples=2)``.
        progress: where long work reports to.
        stages: the calls that making the quantized model consists of.
        **options: the fields of DiffConfig, in place of `config`.

    Raises:
        QuantvmError: an option, the model or its weights are wrong, or it cannot be compiled.
    """
    if config is not None and options:
        raise ConfigError(f"diff: got a config and also {', '.join(sorted(options))}; give one or the other")
    config = config or DiffConfig(**options)
    stages = stages or Stages()
    started_s = time.monotonic()
    raise_problems(config.problems())
    made = _registered if config.compile_config().is_registered else _torchscript
    program, images, threads = made(config, progress, stages)
    comparison = _Comparison(config, program, threads)
    with progress.task("comparing layers", total=len(images)) as task:
        for _, x_f32 in images:
            comparison.add(x_f32)
            task.advance()
    comparison.explain([x_f32 for _, x_f32 in images], progress)
    counts = comparison.counts
    row: DiffRow = {
        "schema_version": SCHEMA_VERSION,
        "model": config.model,
        "reference": config.reference,
        "actual": config.actual,
        "engine": program.engine,
        "threads": threads,
        "target": config.target,
        "images": [image_id for image_id, _ in images],
        "layers": [_layer_row(i, count) for i, count in enumerate(counts)],
        "n_differing": sum(count.cause is not None for count in counts),
        "first": first_difference(counts),
        "duration_s": time.monotonic() - started_s,
    }
    result = DiffResult(row)
    if config.out is not None:
        _save(config.out, result)
    return result


Images = list[tuple[str, np.ndarray]]
"""Id and input, (1, C, H, W) float32, of each image."""


def _registered(config: DiffConfig, progress: Progress, stages: Stages) -> tuple[LayeredProgram, Images, int]:
    from quantvm.frontend import import_layers

    run_config = replace(config.compile_config().run_config(), batch_size=1, num_samples=config.num_samples)
    plan = prepare(run_config, stages, progress)
    stages.use_threads(plan.threads)
    with stages.torch_engine(run_config):
        spec, quantized = quantize_only_model(plan, run_config, stages, progress)
        samples = plan.dataset.samples[: config.num_samples]
        images = [(b.ids[0], np.ascontiguousarray(b.x_f32)) for b in stages.batches(samples, spec, run_config)]
        return import_layers(quantized, images[0][1], engine=config.engine), images, plan.threads


def _torchscript(config: DiffConfig, progress: Progress, stages: Stages) -> tuple[LayeredProgram, Images, int]:
    from quantvm.frontend import import_layers

    run_config = config.compile_config().run_config()
    raise_problems(stages.unsupported_options(run_config))
    threads = resolve_threads(config.threads, stages.physical_cores())
    stages.use_threads(threads)
    shape = (1, *config.input_shape[1:])
    images = _images_of_shape(config, stages, shape, progress)
    with stages.torch_engine(run_config):
        return import_layers(config.model, images[0][1], engine=config.engine), images, threads


def _images_of_shape(config: DiffConfig, stages: Stages, shape: tuple[int, ...], progress: Progress) -> Images:
    """Returns images as a network of that input would see them, or noise where it takes no square colour images."""
    from quantvm.data import iterate_batches
    from quantvm.models.torchvision import imagenet_preprocessing

    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        rng = np.random.default_rng(config.seed)
        noise = rng.standard_normal((config.num_samples, *shape)).astype(np.float32)
        return [(f"noise {i}", noise[i]) for i in range(config.num_samples)]
    run_config = replace(config.compile_config().run_config(), num_samples=config.num_samples)
    samples = stages.load_dataset(run_config, progress).samples[: config.num_samples]
    preprocessing = imagenet_preprocessing(round(shape[2] * 256 / 224), shape[2])
    return [(batch.ids[0], np.ascontiguousarray(batch.x_f32)) for batch in iterate_batches(samples, preprocessing, 1)]


class _Comparison:
    """Both runs of one program, and what was counted so far."""

    def __init__(self, config: DiffConfig, program: LayeredProgram, threads: int) -> None:
        from quantvm.runtime.layers import TorchLayerRun

        self._config, self._program, self._threads = config, program, threads
        self._torch = TorchLayerRun(program, engine=program.engine, threads=threads)
        self._formats: tuple[bool, ...] | None = None
        self._runs: dict[str, Any] = {}
        self.counts = [LayerCount(layer) for layer in program.layers]

    def add(self, x_f32: np.ndarray) -> None:
        """Counts one image."""
        if self._formats is None:
            self._formats = self._torch.channels_last(x_f32)
        expected = self._run(self._config.reference).chained(x_f32)
        actual_run = self._run(self._config.actual)
        for count, a, e in zip(self.counts, actual_run.chained(x_f32), expected, strict=True):
            count.add(a, e)
        if hasattr(actual_run, "isolated"):
            for count, a, e in zip(self.counts, actual_run.isolated(x_f32, expected), expected, strict=True):
                count.add_own(a, e)

    def explain(self, images: Sequence[np.ndarray], progress: Progress) -> None:
        """Tries rules on the layers that have differences of their own, the reference's first.

        Where both sides follow one rule no other can be the cause, even if one happens to give the same integers.
        """
        differing = [count for count in self.counts if count.own is not None and not count.own.is_exact]
        followed = self._rule_of(self._config.reference)
        if not differing or followed == self._rule_of(self._config.actual):
            for count in differing:
                count.explained_by = []
            return
        rules = sorted(RULES, key=lambda rule: rule != followed)
        with progress.task("trying rules", total=len(rules)) as task:
            for rule in rules:
                self._try(rule, images)
                task.advance()
                if all(count.explained_by for count in differing):
                    break

    def _try(self, rule: str, images: Sequence[np.ndarray]) -> None:
        """Notes the layers of which a rule gives all of the reference's integers."""
        fits = [True] * len(self.counts)
        for x_f32 in images:
            expected = self._run(self._config.reference).chained(x_f32)
            found = self._rule(rule).isolated(x_f32, expected)
            fits = [fit and np.array_equal(a, e) for fit, a, e in zip(fits, found, expected, strict=True)]
        for count, fit in zip(self.counts, fits, strict=True):
            count.explained_by = [*(count.explained_by or []), *([rule] if fit else [])]

    def _rule_of(self, side: str) -> str | None:
        """Returns the rule of `RULES` that a side follows; None for the Relax form."""
        kind, _, rest = side.partition(":")
        if kind == "qdq":
            return None
        rest = self._program.engine if rest in ("", "torch") else rest
        return "integer" if rest == "integer:upward" else rest

    def _run(self, side: str) -> Any:
        """Returns what computes a side of `SIDES`."""
        if side not in self._runs:
            from quantvm.runtime.layers import TorchLayerRun

            kind, _, rest = side.partition(":")
            if kind == "torch":
                engine = rest or self._program.engine
                self._runs[side] = TorchLayerRun(self._program, engine=engine, threads=self._threads)
            else:
                self._runs[side] = self._tvm("qdq" if kind == "qdq" else rest or "torch", self._program.engine)
        return self._runs[side]

    def _rule(self, rule: str) -> Any:
        key = f"rule {rule}"
        if key not in self._runs:
            numerics, engine = ("torch", rule) if rule in ENGINES else (rule, self._program.engine)
            self._runs[key] = self._tvm(numerics, engine)
        return self._runs[key]

    def _tvm(self, numerics: str, engine: str) -> Any:
        from quantvm.runtime.layers import TvmLayerRun

        assert self._formats is not None
        return TvmLayerRun(
            self._program, numerics=numerics, engine=engine, channels_last=self._formats,
            target=self._config.target, threads=self._threads,
        )  # fmt: skip


def _layer_row(index: int, count: LayerCount) -> LayerRow:
    layer = count.layer
    return {
        "index": index,
        "name": layer.name,
        "op": layer.op,
        "shape": list(layer.shape),
        "scale": layer.q.scale,
        "zero_point": layer.q.zero_point,
        "whole": count.whole.row(),
        "own": None if count.own is None else count.own.row(),
        "cause": count.cause,
    }


def _save(folder: Path, result: DiffResult) -> None:
    """Writes diff.json and layers.csv, each whole or not at all.

    Raises:
        ConfigError: the folder cannot be written.
    """
    import json

    from quantvm.report.diff_text import layers_csv

    texts = {
        "diff.json": json.dumps(result.row, indent=2, ensure_ascii=False) + "\n",
        "layers.csv": layers_csv(result.row),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            unfinished = folder / f"{name}.tmp"
            unfinished.write_text(text, encoding="utf-8", newline="")
            unfinished.replace(folder / name)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror or error}") from error
