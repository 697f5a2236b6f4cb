"""Shapes of an ONNX graph: sizes of inputs, inferred shapes, and attributes made explicit from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantvm.errors import ModelImportError

from .graph import Constants, attribute, set_attribute
from .shape_values import fold_known_sizes, known_sizes

_WINDOWS = frozenset(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Resize", "Upsample"))

Dims = list["int | str | None"]
"""Sizes of a tensor: a number, the name of a dynamic size, or None if unknown."""


def fix_inputs(model: Any, example_inputs: Sequence[Any] | None, batch: str) -> None:
    """Fixes dimensions of inputs that are dynamic in the file and cannot stay dynamic, at the examples' sizes.

    Args:
        model: an `onnx.ModelProto`; it is modified. Initializers are removed from its inputs.
        example_inputs: one for each input, or None. Examples whose shapes do not fit are ignored here.
        batch: static: fixes all dimensions; dynamic: only height and width of images that windows move over.

    Raises:
        ModelImportError: there are such images, but no examples.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    without_negative_sizes(model.graph)
    has_windows = any(node.op_type in _WINDOWS for node in model.graph.node)
    is_given = example_inputs is not None and len(example_inputs) == len(inputs)
    for index, value in enumerate(model.graph.input):
        dims = value.type.tensor_type.shape.dim
        given = [int(d) for d in example_inputs[index].shape] if example_inputs is not None and is_given else None
        for at, dim in enumerate(dims):
            needed = batch == "static" or (has_windows and len(dims) > 3 and at > 1)
            if dim.HasField("dim_value") or not needed:
                continue
            if given is not None and len(given) == len(dims):
                dim.dim_value = given[at]
            elif batch != "static" and example_inputs is None:
                shown = ", ".join("?" if d is None else str(d) for d in _dims(value.type))
                raise ModelImportError(
                    f"dimension {at} of input {index} ({value.name}) is dynamic: ({shown}), and convolutions, pools or "
                    "resizing need to know it; give example_inputs, whose size it then has, or fix it in the file"
                )


def shape_text(shape: Dims) -> str:
    """Returns the text of a shape for messages; unknown sizes are question marks."""
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def without_negative_sizes(graph: Any) -> None:
    """Makes negative sizes of inputs dynamic: some exporters write dynamic sizes so, and ONNX Runtime accepts it."""
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")


def _dims(kind: Any) -> Dims:
    if not kind.tensor_type.HasField("shape"):
        return []
    return [int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or None) for d in kind.tensor_type.shape.dim]


def inferred_shapes(model: Any) -> dict[str, Dims]:
    """Returns the shape that onnx infers for each value of a model whose rank is known.

    The shapes given in the file for inner values and outputs are ignored, as in ONNX Runtime: they may be wrong.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # noqa: BLE001 (onnx's own error for an invalid model; the importer will name the node)
        found = bare
    return shapes_of(found.graph)


def shapes_of(graph: Any) -> dict[str, Dims]:
    """Returns the shapes that a graph gives for its values, if their rank is known."""
    values = [*graph.value_info, *graph.output, *graph.input]
    shapes = {v.name: _dims(v.type) for v in values if v.type.tensor_type.HasField("shape")}
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def make_explicit(graph: Any, shapes: dict[str, Dims]) -> bool:
    """Makes attributes that follow from shapes explicit in the graph; returns whether there were any.

    `auto_pad` and `output_shape` become pads. If the target of a Reshape, Expand or Resize is computed from dynamic
    sizes, it becomes a constant, provided that at most one size is dynamic.
    """
    changed = fold_known_sizes(graph, shapes)
    constants = Constants(graph)
    sizes = known_sizes(graph, shapes, constants)
    before: list[tuple[int, Any]] = []
    for at, node in enumerate(list(graph.node)):
        if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool"):
            is_padded = _explicit_pads(node, shapes)
            is_changed, sliced = (True, None) if is_padded else _without_dropped_windows(node, shapes, constants)
            changed |= is_changed
            if sliced is not None:
                before.append((at, sliced))
        elif node.op_type == "ConvTranspose":
            changed |= _explicit_transposed_pads(node, shapes)
        elif node.op_type == "Reshape":
            changed |= _constant_target(node, shapes, sizes, constants)
        elif node.op_type == "Expand":
            changed |= _constant_expansion(node, shapes, sizes, constants)
        elif node.op_type == "Resize":
            changed |= _constant_sizes(node, shapes, constants)
    for at, node in reversed(before):
        graph.node.insert(at, node)
    return changed


def _window(node: Any, shapes: dict[str, Dims]) -> tuple[list[int], list[int], list[int]] | None:
    """Returns kernel, strides and dilations, if the kernel is known."""
    kernel = attribute(node, "kernel_shape", None) or shapes.get(node.input[1], [])[2:] if len(node.input) > 1 else (
        attribute(node, "kernel_shape", None))  # fmt: skip
    if not kernel or not all(isinstance(k, int) for k in kernel):
        return None
    ones = [1] * len(kernel)
    return list(kernel), list(attribute(node, "strides", ones)), list(attribute(node, "dilations", ones))


def _split(total: int, mode: str) -> tuple[int, int]:
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def _set_pads(node: Any, pairs: list[tuple[int, int]]) -> bool:
    set_attribute(node, "auto_pad", None)
    set_attribute(node, "pads", [begin for begin, _ in pairs] + [end for _, end in pairs])
    return True


def _explicit_pads(node: Any, shapes: dict[str, Dims]) -> bool:
    mode = attribute(node, "auto_pad", "NOTSET")
    window = _window(node, shapes)
    if mode not in ("SAME_UPPER", "SAME_LOWER", "VALID") or window is None:
        return False
    if mode == "VALID":
        return _set_pads(node, [(0, 0)] * len(window[0]))
    sizes = shapes.get(node.input[0], [])[2:]
    pairs = []
    for size, kernel, stride, dilation in zip(sizes, *window, strict=False):
        reach = dilation * (kernel - 1) + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        else:
            return False
        pairs.append(_split(total, mode))
    return len(pairs) == len(window[0]) and _set_pads(node, pairs)


def _without_dropped_windows(node: Any, shapes: dict[str, Dims], constants: Constants) -> tuple[bool, Any]:
    """Gives a pool in ceil_mode the windows that ONNX Runtime computes: none that begins after the input's end.

    Before operator set 22 onnx's inference counts such a window. If no dimension needs ceil_mode, it is removed. Else
    the padding is reduced, or without padding, the elements that only this window reaches are cut off.

    Returns:
        whether the node changed, and a Slice to insert before it, or None.
    """
    from onnx import helper

    window, sizes = _window(node, shapes), shapes.get(node.input[0], [])[2:]
    if not attribute(node, "ceil_mode", 0) or window is None or not all(isinstance(size, int) for size in sizes):
        return False, None
    if node.op_type == "LpPool":
        return _without_ceil_mode(node, window, sizes), None
    count = len(window[0])
    pads = list(attribute(node, "pads", [0] * (2 * count)))
    kept, cut, is_needed = list(pads), {}, False
    for axis, (size, kernel, stride, dilation) in enumerate(zip(sizes, *window, strict=True)):
        begin, reach = pads[axis], dilation * (kernel - 1) + 1
        over = size + begin + pads[count + axis] - reach
        last = -(-over // stride)
        if last * stride >= size + begin:
            end = (last - 1) * stride + reach - size - begin
            kept[count + axis] = max(end, 0)
            cut.update({axis + 2: size + end} if end < 0 else {})
        else:
            is_needed |= bool(over % stride)
    if not is_needed:
        set_attribute(node, "ceil_mode", None)
        return True, None
    if kept == pads and not cut:
        return False, None
    set_attribute(node, "pads", kept)
    if not cut:
        return True, None
    name = f"{node.output[0]}_read"
    bounds = {"starts": [0] * len(cut), "ends": list(cut.values()), "axes": list(cut)}
    stored = [constants.add_new(f"{name}_{what}", np.array(values, np.int64)) for what, values in bounds.items()]
    sliced = helper.make_node("Slice", [node.input[0], *stored], [name], name)
    node.input[0] = name
    return True, sliced


def _without_ceil_mode(node: Any, window: tuple[list[int], list[int], list[int]], sizes: list[Any]) -> bool:
    """Replaces ceil_mode by padding up to the end of the last window; zeros do not change a sum of powers."""
    count = len(window[0])
    pads = list(attribute(node, "pads", [0] * (2 * count)))
    for axis, (size, kernel, stride, dilation) in enumerate(zip(sizes, *window, strict=True)):
        padded = size + pads[axis] + pads[count + axis] - (dilation * (kernel - 1) + 1)
        last = -(-padded // stride)
        if last * stride < size + pads[axis]:
            pads[count + axis] += last * stride - padded
    set_attribute(node, "ceil_mode", None)
    set_attribute(node, "pads", pads)
    return True


def _explicit_transposed_pads(node: Any, shapes: dict[str, Dims]) -> bool:
    mode = attribute(node, "auto_pad", "NOTSET")
    wanted = attribute(node, "output_shape", None)
    window = _window(node, shapes)
    if window is None or (mode not in ("SAME_UPPER", "SAME_LOWER", "VALID") and not wanted):
        return False
    if mode == "VALID" and not wanted:
        return _set_pads(node, [(0, 0)] * len(window[0]))
    sizes = shapes.get(node.input[0], [])[2:]
    extra = attribute(node, "output_padding", [0] * len(window[0]))
    targets = list(wanted)[-len(window[0]) :] if wanted else [None] * len(window[0])
    pairs = []
    for size, target, added, kernel, stride, dilation in zip(sizes, targets, extra, *window, strict=False):
        reach = dilation * (kernel - 1) + 1
        if target is None:
            total = max(reach + added - stride, 0)
        elif isinstance(size, int):
            total = max(stride * (size - 1) + added + reach - target, 0)
        else:
            return False
        pairs.append(_split(total, mode))
    if len(pairs) != len(window[0]):
        return False
    set_attribute(node, "output_shape", None)
    return _set_pads(node, pairs)


def _constant_target(
    node: Any, shapes: dict[str, Dims], sizes: dict[str, np.ndarray], constants: Constants
) -> bool:  # fmt: skip
    """Replaces the computed shape of a Reshape by a constant one, with -1 for the dynamic size."""
    if len(node.input) < 2 or constants.get(node.input[1]) is not None:
        return False
    given = sizes.get(node.input[1])
    found = shapes.get(node.output[0]) if given is None else list(given)
    if found is None or sum(not isinstance(d, int) or d < 0 for d in found) > 1:
        return False
    if 0 in found and (given is None or attribute(node, "allowzero", 0)):
        return False
    target = np.array([d if isinstance(d, int) else -1 for d in found], np.int64)
    node.input[1] = constants.add_new(f"{node.output[0]}_shape", target)
    return True


def _constant_expansion(
    node: Any, shapes: dict[str, Dims], sizes: dict[str, np.ndarray], constants: Constants
) -> bool:  # fmt: skip
    """Replaces the computed sizes of an Expand by constants, with 1 for a dynamic size that the input has already."""
    given, found = shapes.get(node.input[0]), shapes.get(node.output[0])
    target = sizes.get(node.input[1])
    if constants.get(node.input[1]) is not None or given is None or target is None or target.ndim != 1:
        return False
    before = [1] * (len(target) - len(given)) + list(given)
    wanted = []
    for old, new, out in zip(before[len(before) - len(target) :], target, (found or [])[-len(target) :], strict=False):
        if new is None and (isinstance(old, int) or old is None or old != out):
            return False
        wanted.append(1 if new is None else int(new))
    if len(wanted) != len(target):
        return False
    node.input[1] = constants.add_new(f"{node.output[0]}_shape", np.array(wanted, np.int64))
    return True


def _constant_sizes(node: Any, shapes: dict[str, Dims], constants: Constants) -> bool:
    """Replaces the computed sizes of a Resize by constants, for all dimensions but the batch."""
    if len(node.input) < 4 or not node.input[3] or constants.get(node.input[3]) is not None:
        return False
    found, given = shapes.get(node.output[0]), shapes.get(node.input[0])
    if attribute(node, "axes", None) is not None or not found or not given or len(found) != len(given):
        return False
    axes = [axis for axis, (old, new) in enumerate(zip(given, found, strict=True)) if axis or isinstance(new, int)]
    if not axes or any(not isinstance(found[axis], int) for axis in axes):
        return False
    node.input[3] = constants.add_new(f"{node.output[0]}_sizes", np.array([found[axis] for axis in axes], np.int64))
    set_attribute(node, "axes", axes)
    return True


__all__ = [
    "Dims",
    "fix_inputs",
    "inferred_shapes",
    "make_explicit",
    "shape_text",
    "shapes_of",
    "without_negative_sizes",
]
