"""``quantvm diff``: in which layers two runs of one quantized model differ, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.data import iterate_batches
from quantvm.errors import ConfigError, OutputError, RunError, stage
from quantvm.jobs.layer_differences.comparison import Comparison
from quantvm.jobs.layer_differences.config import DiffConfig
from quantvm.jobs.layer_differences.layer_parity import LayerCount, first_difference
from quantvm.jobs.layer_differences.schema import DiffResult, DiffRow, LayerRow, WaterfallRow
from quantvm.models.torchvision import imagenet_preprocessing
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.runtime.target import Machine
from quantvm.storage.output_files import make_folder, write_file
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import use_threads
from quantvm.workload.plan import Plan, images_of, machine_of, unsupported_options
from quantvm.workload.prepare import prepare
from quantvm.workload.program import Program

if TYPE_CHECKING:
    from quantvm.frontend import LayeredProgram


def compare_layers(config: DiffConfig, *, progress: Progress = SILENT) -> DiffResult:
    """Returns how the integers of every layer differ between two runs; see `quantvm.diff`."""
    started_s = time.monotonic()
    raise_problems(config.problems())
    if config.out is not None:
        _make(config.out)
    with stage("comparing the layers", RunError):
        result = _compared(config, started_s, progress)
    if config.out is not None:
        _save(config.out, result)
    return result


def _compared(config: DiffConfig, started_s: float, progress: Progress) -> DiffResult:
    subject = _subject(config, progress)
    program, images = subject.program, subject.images
    comparison = Comparison(config, program, subject.float_model, subject.machine, images[0].x_f32)
    comparison.compile(progress)
    with progress.task("comparing layers", total=len(images)) as task:
        for image in images:
            comparison.add(image.x_f32)
            task.advance()
    comparison.explain([image.x_f32 for image in images], progress)
    counts = comparison.counts
    repro, repro_problem = _repro(config, comparison, subject)
    row: DiffRow = {
        "schema_version": SCHEMA_VERSION,
        "model": config.model,
        "reference": comparison.reference,
        "actual": comparison.actual,
        "engine": program.engine,
        "threads": subject.machine.threads,
        "target": config.target,
        "images": [image.id for image in images],
        "layers": [_layer_row(i, count) for i, count in enumerate(counts)],
        "n_differing": sum(count.differs for count in counts),
        "first": first_difference(counts),
        "fusion": comparison.fusion_rows(),
        "waterfall": _waterfall(comparison, subject, progress) if config.waterfall else None,
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
    """The model that is compared, and the images."""

    program: LayeredProgram
    images: list[_Image]
    machine: Machine
    float_model: Any = None


def _subject(config: DiffConfig, progress: Progress) -> _Subject:
    """Returns the model split into layers, with the images for the comparison."""
    program, plan = prepare(config.model, config, progress=progress)
    if config.needs_float_model and program.is_own:
        raise ConfigError(config.missing_float_model)
    machine = machine_of(config)
    use_threads(machine)
    with quantization_engine(config.engine):
        if program.is_own and program.shapes_are_given:
            raise_problems(unsupported_options(config))
            program.check(as_classifier=False)
        images = _images(config, program, plan, progress)
        layered = _layered(program, images[0].x_f32, config)
    if config.needs_float_model and program.float_module is None:
        raise ConfigError(
            f"{config.model}: weights {config.weights} were published as integers, so that there is no float model "
            "for fp32 or a waterfall; choose other weights"
        )
    return _Subject(layered, images, machine, program.float_module)


def _layered(program: Program, x_f32: np.ndarray, config: DiffConfig) -> LayeredProgram:
    """Returns the program with every quantized tensor as an output."""
    import torch

    from quantvm.frontend import import_layers
    from quantvm.frontend.exported.layers import import_exported_layers
    from quantvm.frontend.file_layers import import_file_layers
    from quantvm.frontend.source import Source

    if program.kind == "exported":
        return import_exported_layers(program.value, [torch.from_numpy(x_f32)])
    if program.kind in ("onnx", "tflite"):
        return import_file_layers(program.value, [torch.from_numpy(x_f32)])
    return import_layers(Source(program.value, x_f32, config.engine))


def _images(config: DiffConfig, program: Program, plan: Plan | None, progress: Progress) -> list[_Image]:
    """Returns images as the program takes them, or noise if it does not take square colour images.

    The plan by which the program was quantized has read them already.
    """
    shape = _one_image(config, program)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        rng = np.random.default_rng(config.seed)
        noise = rng.standard_normal((config.num_samples, *shape)).astype(np.float32)
        return [_Image(f"noise {i}", noise[i : i + 1]) for i in range(config.num_samples)]
    dataset = images_of(config.workload(), progress) if plan is None else plan.dataset
    samples = dataset.samples[: config.num_samples]
    preprocessing = program.preprocessing or imagenet_preprocessing(round(shape[1] * 256 / 224), shape[1])
    found = [
        _Image(batch.ids[0], np.ascontiguousarray(batch.x_f32), None if program.is_own else int(batch.labels[0]))
        for batch in iterate_batches(samples, preprocessing, 1)
    ]
    if not program.is_channels_last:
        return found
    return [replace(image, x_f32=np.ascontiguousarray(image.x_f32.transpose(0, 2, 3, 1))) for image in found]


def _one_image(config: DiffConfig, program: Program) -> tuple[int, ...]:
    """Returns the shape of one image that the program takes, channels first for colour images."""
    if not program.shapes_are_given and (len(program.shapes) != 1 or program.fixed_batch not in (None, 1)):
        raise ConfigError(
            f"{config.model} takes {program.shapes_text}, and diff runs one input of one image; export it so, or, with "
            "dynamic_shapes, for any number of images"
        )
    return tuple(d or 1 for d in program.image_shape or program.shapes[0][1:])


def _waterfall(comparison: Comparison, subject: _Subject, progress: Progress) -> WaterfallRow:
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


def _repro(config: DiffConfig, comparison: Comparison, subject: _Subject) -> tuple[str | None, str | None]:
    """Returns the file that shows the first layer's own difference alone, or why there is none."""
    if config.save_repro is None:
        return None, None
    from quantvm.jobs.layer_differences.repro import save_repro

    problem = save_repro(config.save_repro, config, comparison, [i.x_f32 for i in subject.images])
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
    """Makes the folder before the work begins, so that no work is lost if that fails.

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
