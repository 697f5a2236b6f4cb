"""Writes a pytest file that reproduces one layer's difference: one operator on a part of its inputs, or the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantvm.choices import ENGINES
from quantvm.errors import QuantvmError, gist
from quantvm.jobs.layer_differences.comparison import Comparison
from quantvm.jobs.layer_differences.config import DiffConfig
from quantvm.jobs.layer_differences.repro_programs import ProgramCase, program_text
from quantvm.jobs.layer_differences.repro_text import ReproCase, repro_text
from quantvm.layer_rules import Operator, Window
from quantvm.storage.output_files import write_file

if TYPE_CHECKING:
    from quantvm.lowering.layer_operators import LayerOperator


def save_repro(path: Path, config: DiffConfig, comparison: Comparison, images: Sequence[np.ndarray]) -> str | None:
    """Writes the file for the first layer with differences of its own; returns why none was written, or None.

    For an operator of PyTorch's quantized modules, parts of its inputs are tried, the smallest first, with the very
    code that is written; the first that still differs is kept. For exported programs and ONNX files the file computes
    the layer: all operators between its tensor and the quantized tensors that it reads.

    Raises:
        ConfigError: the file cannot be written.
    """
    index = next((i for i, count in enumerate(comparison.counts) if count.has_own), None)
    if index is None:
        return "no layer differs where it is computed from equal inputs"
    problem = _not_written(comparison)
    if problem is not None:
        return problem
    layer = comparison.counts[index].layer
    if comparison.pytorch.engine in ENGINES:
        operator = comparison.operators[index]
        if operator is None or operator.operator.kind == "quantize_affine":
            return f"layer {layer.name} ({layer.op}) is no single operator of PyTorch"
        texts = _operator_texts(index, operator, config, comparison, images)
    else:
        texts = _program_texts(index, config, comparison, images)
    problem = equal = f"layer {layer.name} gives equal integers where it is the only one of a model"
    for text in texts:
        try:
            is_shown = _differs(text)
        except (QuantvmError, RuntimeError, ValueError) as error:  # the next part may work
            problem = f"layer {layer.name} cannot be computed as the only one of a model: {gist(error)}"
            continue
        if is_shown:
            write_file(path, text.encode())
            return None
        problem = equal
    return problem


def _not_written(comparison: Comparison) -> str | None:
    """Returns why no file can reproduce layers of such a comparison; None if one can."""
    source = comparison.source_side
    if source is None:
        return "no framework is at hand that computes layers of this file alone"
    for side in (comparison.reference, comparison.actual):
        if side.split(":")[0] not in (source, "tvm"):
            return f"side {side} cannot be called alone; compare {source} or tvm"
    return None


def _operator_texts(
    index: int, operator: LayerOperator, config: DiffConfig, comparison: Comparison, images: Sequence[np.ndarray]
) -> Iterator[str]:  # fmt: skip
    """Yields files for parts of a layer of PyTorch's quantized modules; for each image, the smaller parts first."""
    layer = comparison.counts[index].layer
    for x_f32, expected, own in _differing(index, comparison, images):
        at = tuple(int(i) for i in np.argwhere(expected[index] != own[index])[0])
        inputs = [np.ascontiguousarray(x) for x in operator.inputs_of([x_f32, *expected])]
        for part, part_inputs in parts(operator.operator, inputs, at):
            case = ReproCase(
                part, part_inputs, layer.name, config.model, comparison.reference, comparison.actual,
                comparison.pytorch, comparison.machine,
            )  # fmt: skip
            yield repro_text(case)


def _program_texts(
    index: int, config: DiffConfig, comparison: Comparison, images: Sequence[np.ndarray]
) -> Iterator[str]:
    """Yields files for a layer of an exported program or an ONNX file, one for each image."""
    layer = comparison.counts[index].layer
    for x_f32, expected, _ in _differing(index, comparison, images):
        alone = comparison.alone(index, x_f32)
        numbers = [number if kind == "layer" else None for kind, number in alone.reads]
        case = ProgramCase(
            alone.program,
            [x_f32 if i is None else expected[i] for i in numbers],
            [None if i is None else comparison.counts[i].layer.q for i in numbers],
            [i is not None and comparison.formats[i] for i in numbers],
            layer.q, layer.name, config.model, comparison.reference, comparison.actual, comparison.machine,
        )  # fmt: skip
        yield program_text(case)


def _differing(
    index: int, comparison: Comparison, images: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, list[NDArray], list[NDArray]]]:
    """Yields the images on which a layer differs, with the layers of the reference and of the other side."""
    for x_f32 in images:
        expected, own = comparison.both(x_f32)
        if not np.array_equal(expected[index], own[index]):
            yield x_f32, expected, own


def _differs(text: str) -> bool:
    """Runs the code of a file; returns whether its sides differ."""
    names: dict[str, Any] = {"__name__": "quantvm_repro"}
    exec(compile(text, "<repro>", "exec"), names)  # noqa: S102  # the text is ours
    return bool((names["expected"]() != names["found"]()).any())


# ------------------------------------------------------------------ parts of a layer


def parts(
    operator: Operator, inputs: Sequence[NDArray], at: tuple[int, ...]
) -> Iterator[tuple[Operator, list[NDArray]]]:
    """Yields parts of a layer that hold one output element, smaller ones first, the layer itself last.

    Args:
        operator: the layer's.
        inputs: in PyTorch's logical order.
        at: index of the element.
    """
    kind = operator.kind
    if kind == "conv2d":
        yield from _convolutions(operator, inputs[0], at)
    elif kind == "linear":
        yield from _rows(operator, inputs[0], at)
    elif kind in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"):
        yield from _channels(operator, inputs, at[0], at[1])
    elif kind == "concat":
        if operator.axis % inputs[0].ndim == 1:
            yield operator, [x[_slices_at(x, at, 1)] for x in inputs]
    else:
        yield operator, [x[_slices_at(x, at)] for x in inputs]
        if inputs[0].ndim == 4:
            yield operator, [x[_slices_at(x, at, 1)] for x in inputs]
    image = slice(at[0], at[0] + 1)
    yield operator, [x[image] for x in inputs]


def _slices_at(x: NDArray, at: Sequence[int], whole: int | None = None) -> tuple[slice, ...]:
    """Returns the slices that select one element, or all along one axis; dimensions of size one stay."""
    axis = None if whole is None else whole % x.ndim
    return tuple(slice(None) if i == axis or size == 1 else slice(at[i], at[i] + 1) for i, size in enumerate(x.shape))


def _rows(operator: Operator, x: NDArray, at: tuple[int, ...]) -> Iterator[tuple[Operator, list[NDArray]]]:
    row = x[at[:-1]].reshape(1, -1)
    yield _of_channels(operator, slice(at[-1], at[-1] + 1)), [row]
    yield operator, [row]


def _of_channels(operator: Operator, channels: slice, **changes: Any) -> Operator:
    """Returns a contraction with some of its output channels."""
    assert operator.weight is not None
    assert operator.weight_scales is not None
    assert operator.weight_zero_points is not None
    per_channel = operator.weight_scales.size > 1 or operator.weight.shape[0] == 1
    return dataclasses.replace(
        operator,
        weight=operator.weight[channels],
        weight_scales=operator.weight_scales[channels] if per_channel else operator.weight_scales,
        weight_zero_points=operator.weight_zero_points[channels] if per_channel else operator.weight_zero_points,
        bias_f32=None if operator.bias_f32 is None else operator.bias_f32[channels],
        **changes,
    )


def _convolutions(operator: Operator, x: NDArray, at: tuple[int, ...]) -> Iterator[tuple[Operator, list[NDArray]]]:
    window, weight = operator.window, operator.weight
    assert window is not None
    assert weight is not None
    n, channel, row, column = at
    top, left, bottom, right = window.padding
    fill = operator.inputs[0].zero_point
    padded = np.pad(x[n : n + 1], ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    span = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    starts = row * window.stride[0], column * window.stride[1]
    patch = padded[:, :, starts[0] : starts[0] + span[0], starts[1] : starts[1] + span[1]]
    group = channel // (weight.shape[0] // window.groups)
    group_in = weight.shape[1]
    bare = dataclasses.replace(window, padding=(0, 0, 0, 0), groups=1)
    yield (
        _of_channels(operator, slice(channel, channel + 1), window=bare),
        [patch[:, group * group_in : (group + 1) * group_in]],
    )
    yield dataclasses.replace(operator, window=dataclasses.replace(bare, groups=window.groups)), [patch]
    yield operator, [_receptive_field(x[n : n + 1], window, (row, column), span)]


def _receptive_field(x: NDArray, window: Window, out: tuple[int, int], span: Sequence[int]) -> NDArray:
    """Returns the part of an image that one output pixel reads; it is padded later, as the image would be."""
    slices = []
    for axis in (0, 1):
        stride, pad, size = window.stride[axis], window.padding[axis], x.shape[2 + axis]
        before = min(out[axis], -(-pad // stride))  # windows that begin in the padding of the part
        stop = out[axis] * stride - pad + span[axis]
        slices.append(slice((out[axis] - before) * stride, min(max(stop, 1), size)))
    return x[:, :, slices[0], slices[1]]


def _channels(
    operator: Operator, inputs: Sequence[NDArray], n: int, channel: int
) -> Iterator[tuple[Operator, list[NDArray]]]:
    """Yields a pool of one channel, and one of the 16 channels whose vector holds it."""
    (x,) = inputs
    start = channel // 16 * 16
    for channels in (slice(channel, channel + 1), slice(start, min(start + 16, x.shape[1]))):
        yield operator, [x[n : n + 1, channels]]
