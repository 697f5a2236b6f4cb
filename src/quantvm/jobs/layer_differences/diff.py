"""``quantvm diff``: which layers two runs of one quantized model differ in, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import ConfigError, OutputError, RunError, stage
from quantvm.jobs.compilation.compile_to_file import float_and_quantized
from quantvm.jobs.evaluation.config import raise_problems, resolve_threads
from quantvm.jobs.evaluation.plan import prepare
from quantvm.jobs.evaluation.stages import Stages
from quantvm.jobs.layer_differences.comparison import Comparison
from quantvm.jobs.layer_differences.config import SIDES, DiffConfig
from quantvm.jobs.layer_differences.layer_parity import LayerCount, first_difference
from quantvm.jobs.layer_differences.schema import DiffResult, DiffRow, LayerRow, WaterfallRow
from quantvm.progress import SILENT, Progress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.storage.output_files import make_folder, write_file

if TYPE_CHECKING:
    from quantvm.frontend import LayeredProgram
    from quantvm.workload.user_models import UserProgram

__all__ = ["SIDES", "DiffConfig", "diff"]


def diff(
    config: DiffConfig | None = None, *, progress: Progress = SILENT, stages: Stages | None = None, **options: Any
) -> DiffResult:
    """Returns how the integers of every layer differ between two runs; ``quantvm diff`` calls this.

    Each layer is compared in the run as a whole, and also computed alone from the reference's inputs, so that an
    inherited difference is told from a layer's own. On layers that have differences of their own, rules are tried: how
    ties are rounded, where the zero point is added, and so on (`quantvm.layer_rules`). A pair of rules that gives all
    integers of both sides is the cause.

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
    if config.out is not None:
        _make(config.out)
    with stage("comparing the layers", RunError):
        result = _compared(config, started_s, progress, stages)
    if config.out is not None:
        _save(config.out, result)
    return result


def _compared(config: DiffConfig, started_s: float, progress: Progress, stages: Stages) -> DiffResult:
    subject = _subject(config, progress, stages)
    program, images = subject.program, subject.images
    comparison = Comparison(config, program, subject.float_model, subject.threads, images[0].x_f32)
    comparison.compile(progress)
    with progress.task("comparing layers", total=len(images)) as task:
        for image in images:
            comparison.add(image.x_f32)
            task.advance()
    comparison.explain([image.x_f32 for image in images], progress)
    counts = comparison.counts
    repro, repro_problem = _repro(config, comparison, subject, progress)
    row: DiffRow = {
        "schema_version": SCHEMA_VERSION,
        "model": config.model,
        "reference": comparison.reference,
        "actual": comparison.actual,
        "engine": program.engine,
        "threads": subject.threads,
        "target": config.target,
        "images": [image.id for image in images],
        "layers": [_layer_row(i, count) for i, count in enumerate(counts)],
        "n_differing": sum(count.differs for count in counts),
        "first": first_difference(counts),
        "fusion": comparison.fusion_rows(),
        "waterfall": _waterfall(config, comparison, subject, progress) if config.waterfall else None,
        "repro": repro,
        "repro_problem": repro_problem,
        "duration_s": time.monotonic() - started_s,
    }
    return DiffResult(row)


@dataclass(frozen=True)
class _Image:
    """One image: its input, (1, C, H, W) float32, and its class if it has one."""

    id: str
    x_f32: np.ndarray
    label: int | None = None


@dataclass(frozen=True)
class _Subject:
    """What is compared, on which images."""

    program: LayeredProgram
    images: list[_Image]
    threads: int
    float_model: Any = None


def _subject(config: DiffConfig, progress: Progress, stages: Stages) -> _Subject:
    if config.compile_config().is_registered:
        return _quantized_here(config, progress, stages)
    from quantvm.workload.user_models import UserProgram, load_model

    found = load_model(config.model, input_shapes=((1, *config.input_shape[1:]),), engine=config.engine)
    if not isinstance(found, UserProgram):
        return _quantized_here(config, progress, stages)
    if config.needs_float_model:
        raise ConfigError(config.missing_float_model)
    return (_torchscript if found.shapes_are_given else _with_shapes)(config, found, progress, stages)


def _with_shapes(config: DiffConfig, found: UserProgram, progress: Progress, stages: Stages) -> _Subject:
    """Takes a program that says the shapes of its inputs."""
    import torch

    from quantvm.frontend.exported.layers import import_exported_layers
    from quantvm.frontend.file_layers import import_file_layers

    threads = resolve_threads(config.threads, stages.physical_cores())
    stages.use_threads(threads)
    if len(found.shapes) != 1 or found.fixed_batch not in (None, 1):
        raise ConfigError(
            f"{config.model} takes {found.shapes_text}, and diff runs one input of one image; export it so, or, with "
            "dynamic_shapes, for any number of images"
        )
    shape = tuple(d or 1 for d in found.image_shape or found.shapes[0][1:])
    images = _images_of_shape(config, shape, progress, stages)
    if found.is_channels_last:
        images = [replace(image, x_f32=np.ascontiguousarray(image.x_f32.transpose(0, 2, 3, 1))) for image in images]
    example = [torch.from_numpy(images[0].x_f32)]
    if found.kind == "exported":
        return _Subject(import_exported_layers(found.value, example), images, threads)
    return _Subject(import_file_layers(found.value, example), images, threads)


def _quantized_here(config: DiffConfig, progress: Progress, stages: Stages) -> _Subject:
    """Quantizes a float model, of the registry or of a factory, as the main job does."""
    import torch

    from quantvm.frontend import import_layers
    from quantvm.frontend.exported.layers import import_exported_layers
    from quantvm.workload.user_models import UserProgram

    run_config = replace(config.compile_config().run_config(), batch_size=1, num_samples=config.num_samples)
    plan = prepare(run_config, stages, progress)
    stages.use_threads(plan.threads)
    with stages.torch_engine(run_config):
        spec, float_model, quantized = float_and_quantized(plan, run_config, stages, progress, flow=config.flow)
        samples = plan.dataset.samples[: config.num_samples]
        images = [
            _Image(b.ids[0], np.ascontiguousarray(b.x_f32), int(b.labels[0]))
            for b in stages.batches(samples, spec, run_config)
        ]
        if isinstance(quantized, UserProgram):  # of the flow pt2e
            program = import_exported_layers(quantized.value, [torch.from_numpy(images[0].x_f32)])
        else:
            program = import_layers(quantized, images[0].x_f32, engine=config.engine)
    if config.needs_float_model and float_model is None:
        raise ConfigError(
            f"{config.model}: weights {config.weights} were published as integers, so that there is no float model "
            "for fp32 or a waterfall; choose other weights"
        )
    return _Subject(program, images, plan.threads, float_model)


def _torchscript(config: DiffConfig, found: UserProgram, progress: Progress, stages: Stages) -> _Subject:
    from quantvm.frontend import import_layers

    run_config = config.compile_config().run_config()
    raise_problems(stages.unsupported_options(run_config))
    threads = resolve_threads(config.threads, stages.physical_cores())
    stages.use_threads(threads)
    with stages.torch_engine(run_config):
        found.check(as_classifier=False)
        images = _images_of_shape(config, tuple(d or 1 for d in found.shapes[0][1:]), progress, stages)
        return _Subject(import_layers(found.value, images[0].x_f32, engine=config.engine), images, threads)


def _images_of_shape(config: DiffConfig, shape: tuple[int, ...], progress: Progress, stages: Stages) -> list[_Image]:
    """Returns images as a network of that input would see them, or noise where it takes no square colour images."""
    from quantvm.data import iterate_batches
    from quantvm.models.torchvision import imagenet_preprocessing

    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        rng = np.random.default_rng(config.seed)
        noise = rng.standard_normal((config.num_samples, *shape)).astype(np.float32)
        return [_Image(f"noise {i}", noise[i : i + 1]) for i in range(config.num_samples)]
    run_config = replace(config.compile_config().run_config(), num_samples=config.num_samples)
    samples = stages.load_dataset(run_config, progress).samples[: config.num_samples]
    preprocessing = imagenet_preprocessing(round(shape[1] * 256 / 224), shape[1])
    return [
        _Image(batch.ids[0], np.ascontiguousarray(batch.x_f32)) for batch in iterate_batches(samples, preprocessing, 1)
    ]


def _waterfall(config: DiffConfig, comparison: Comparison, subject: _Subject, progress: Progress) -> WaterfallRow:
    import torch

    from quantvm.jobs.layer_differences.waterfall import FP32, QDQ, TORCH, TVM, Forward, waterfall

    float_model = subject.float_model.eval()

    def fp32(x_f32: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return float_model(torch.from_numpy(x_f32)).numpy()

    compiled = next((s for s in (comparison.actual, comparison.reference) if s.startswith("tvm")), "tvm")
    forwards: Mapping[str, Forward] = {
        FP32: fp32,
        QDQ: lambda x_f32: comparison.run("qdq").outputs(x_f32)[0],
        TORCH: lambda x_f32: comparison.run("torch").outputs(x_f32)[0],
        TVM: lambda x_f32: comparison.run(compiled).fused_outputs(x_f32)[0],
    }
    images = [(image.x_f32, image.label) for image in subject.images if image.label is not None]
    return waterfall(forwards, images, progress)


def _repro(
    config: DiffConfig, comparison: Comparison, subject: _Subject, progress: Progress
) -> tuple[str | None, str | None]:
    """Returns the file that shows the first layer's own difference alone, or why there is none."""
    if config.save_repro is None:
        return None, None
    from quantvm.jobs.layer_differences.repro import save_repro

    problem = save_repro(config.save_repro, config, comparison, [i.x_f32 for i in subject.images], subject.threads)
    return (str(config.save_repro), None) if problem is None else (None, problem)


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
        "rule": None if count.rule is None else count.rule.row(),
        "float_sqnr_db": None if count.to_float is None else count.to_float.sqnr_db,
    }


def _make(folder: Path) -> None:
    """Makes the folder before hours of work are lost for want of one.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        make_folder(folder)
    except OutputError as error:
        raise ConfigError(f"out: {error}") from error


def _save(folder: Path, result: DiffResult) -> None:
    """Writes diff.json and layers.csv, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    from quantvm.jobs.layer_differences.text import layers_csv

    texts = {
        "diff.json": json.dumps(result.row, indent=2, ensure_ascii=False) + "\n",
        "layers.csv": layers_csv(result.row),
    }
    for name, text in texts.items():
        write_file(folder / name, text.encode())
