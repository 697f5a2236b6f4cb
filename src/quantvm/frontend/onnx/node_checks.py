"""Checks single nodes for errors that onnx's shape inference accepts, but ONNX Runtime refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quantvm.errors import ModelImportError, listed

from .graph import Constants, attribute
from .shapes import Dims, shape_text

_Rule = Callable[[Any, "_Facts"], "str | None"]
_RULES: dict[str, list[_Rule]] = {}


class _Facts:
    """The shapes and constants of a graph."""

    def __init__(self, shapes: dict[str, Dims], constants: Constants) -> None:
        self._shapes, self._constants = shapes, constants

    def shape(self, node: Any, index: int) -> Dims | None:
        """Returns the shape of an input, or None if it is missing or its rank is unknown."""
        name = node.input[index] if index < len(node.input) else ""
        return self._shapes.get(name) if name else None

    def constant(self, node: Any, index: int) -> np.ndarray | None:
        """Returns the value of an input that is an initializer, else None."""
        name = node.input[index] if index < len(node.input) else ""
        return self._constants.get(name) if name else None


def check_nodes(graph: Any, shapes: dict[str, Dims], constants: Constants) -> None:
    """Raises one ModelImportError for all nodes that violate a rule.

    Args:
        graph: a graph whose nodes have names.
        shapes: shapes of its values with known rank.
        constants: its initializers.
    """
    facts = _Facts(shapes, constants)
    problems = [
        f"{node.op_type} at {node.name}: {problem}"
        for node in graph.node
        for rule in _RULES.get(node.op_type, ())
        if (problem := rule(node, facts)) is not None
    ]
    if problems:
        raise ModelImportError(f"ONNX does not allow this, and ONNX Runtime refuses it: {listed(problems)}")


def _rule_for(*op_types: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for op_type in op_types:
            _RULES.setdefault(op_type, []).append(rule)
        return rule

    return register


@_rule_for("QuantizeLinear", "DequantizeLinear")
def _parameters(node: Any, facts: _Facts) -> str | None:
    """Scale and zero point have the same shape: one element, or one per slice along the axis."""
    x, scale, zero_point = (facts.shape(node, index) for index in range(3))
    if scale is None or attribute(node, "block_size", 0):
        return None
    counts = [_count(scale), None if zero_point is None else _count(zero_point)]
    if zero_point is not None and None not in counts and zero_point != scale and counts != [1, 1]:
        shapes = f"{shape_text(scale)} and the zero point {shape_text(zero_point)}"
        return f"the scale has the shape {shapes}, expected the same"
    if _count(scale) == 1:
        return None
    if len(scale) != 1:
        return f"the scale has the shape {shape_text(scale)}, expected one element or one dimension"
    axis = attribute(node, "axis", 1)
    if x is None:
        return None
    if len(x) == 1 and axis == 1:
        axis = 0
    if not -len(x) <= axis < len(x):
        return f"axis {axis} of a tensor of {len(x)} dimensions"
    size = x[axis]
    if isinstance(size, int) and isinstance(scale[0], int) and size != scale[0]:
        return f"{scale[0]} scales for the {size} slices along axis {axis}"
    return None


def _count(shape: Dims) -> int | None:
    """Returns the number of elements, or None if it is unknown."""
    count = 1
    for size in shape:
        if not isinstance(size, int):
            return None
        count *= size
    return count


@_rule_for("Conv", "ConvTranspose")
def _channels(node: Any, facts: _Facts) -> str | None:
    x, weight, bias = (facts.shape(node, index) for index in range(3))
    groups = attribute(node, "group", 1)
    if groups < 1:
        return f"group {groups}, expected at least 1"
    if weight is None or len(weight) < 3:
        return None
    kernel = attribute(node, "kernel_shape", None)
    if kernel is not None and any(isinstance(b, int) and a != b for a, b in zip(kernel, weight[2:], strict=False)):
        return f"kernel_shape {tuple(kernel)} of a weight of shape {shape_text(weight)}"
    is_transposed = node.op_type == "ConvTranspose"
    taken = weight[0] if is_transposed else _times(weight[1], groups)
    made = _times(weight[1], groups) if is_transposed else weight[0]
    if x is not None and len(x) > 1 and isinstance(x[1], int) and isinstance(taken, int) and x[1] != taken:
        return (
            f"the input has {x[1]} channels; the weight of shape {shape_text(weight)} in {groups} groups takes {taken}"
        )
    for count, what in ((taken, "input"), (made, "output")):
        if isinstance(count, int) and count % groups:
            return f"{groups} groups do not divide {count} {what} channels"
    if bias is not None and isinstance(made, int) and bias not in ([made], [None]):
        return f"a bias of shape {shape_text(bias)}, expected ({made},)"
    return None


def _times(size: int | str | None, factor: int) -> int | None:
    return size * factor if isinstance(size, int) else None


@_rule_for("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
def _one_padding(node: Any, facts: _Facts) -> str | None:
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        return f"auto_pad {mode!r}, expected NOTSET, SAME_UPPER, SAME_LOWER or VALID"
    if node.op_type == "Conv" and mode != "NOTSET" and attribute(node, "pads", None) is not None:
        return f"auto_pad {mode} and pads {tuple(attribute(node, 'pads', ()))}, expected one of them"
    return None


@_rule_for("MaxPool", "AveragePool", "LpPool")
def _pads_below_kernel(node: Any, facts: _Facts) -> str | None:
    """No window of a pool lies entirely in the padding."""
    kernel, pads = attribute(node, "kernel_shape", None), attribute(node, "pads", None)
    if not kernel or not pads or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    if any(pad >= size for pad, size in zip(pads, [*kernel, *kernel], strict=False)):
        return f"pads {tuple(pads)} of a kernel {tuple(kernel)}, expected smaller ones"
    return None


@_rule_for("ConvTranspose")
def _reachable_size(node: Any, facts: _Facts) -> str | None:
    """The requested size is not larger than the weight reaches."""
    wanted, x, weight = attribute(node, "output_shape", None), facts.shape(node, 0), facts.shape(node, 1)
    if not wanted or x is None or weight is None or len(x) != len(weight):
        return None
    count = len(x) - 2
    ones = [1] * count
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    added = attribute(node, "output_padding", [0] * count)
    for size, kernel, *step, target in zip(x[2:], weight[2:], strides, dilations, added, wanted[-count:], strict=False):
        stride, dilation, extra = step
        if isinstance(size, int) and isinstance(kernel, int):
            most = stride * (size - 1) + extra + dilation * (kernel - 1) + 1
            if target > most:
                return f"output_shape {tuple(wanted)}; the weight reaches {most} pixels of {target}"
    return None


@_rule_for("Gather", "GatherElements", "ScatterElements", "Scatter")
def _places_along_axis(node: Any, facts: _Facts) -> str | None:
    """Constant indices lie within the tensor."""
    x, places = facts.shape(node, 0), facts.constant(node, 1)
    axis = attribute(node, "axis", 0)
    if x is None or places is None or not -len(x) <= axis < len(x):
        return None
    size = x[axis]
    return _out_of_range(places, size, f"axis {axis}") if isinstance(size, int) else None


@_rule_for("GatherND", "ScatterND")
def _places_in_all(node: Any, facts: _Facts) -> str | None:
    x, places = facts.shape(node, 0), facts.constant(node, 1)
    if x is None or places is None or not places.ndim:
        return None
    first = attribute(node, "batch_dims", 0)
    for index, size in enumerate(x[first : first + places.shape[-1]]):
        if isinstance(size, int):
            problem = _out_of_range(places[..., index], size, f"axis {first + index}")
            if problem is not None:
                return problem
    return None


def _out_of_range(places: np.ndarray, size: int, where: str) -> str | None:
    outside = places[(places < -size) | (places >= size)]
    return f"place {outside.ravel()[0]} along {where}, which has {size} slices" if outside.size else None


@_rule_for("SpaceToDepth")
def _whole_blocks(node: Any, facts: _Facts) -> str | None:
    x, block = facts.shape(node, 0), attribute(node, "blocksize", 1)
    if x is not None and len(x) == 4 and any(isinstance(d, int) and d % block for d in x[2:]):
        return f"blocks of {block} pixels do not divide an image of {shape_text(x[2:])}"
    return None


@_rule_for("LRN")
def _odd_window(node: Any, facts: _Facts) -> str | None:
    size = attribute(node, "size", 1)
    return None if size > 0 and size % 2 else f"size {size}, expected an odd one of at least 1"


@_rule_for("GlobalAveragePool", "GlobalMaxPool")
def _has_pixels(node: Any, facts: _Facts) -> str | None:
    x = facts.shape(node, 0)
    return f"an input of shape {shape_text(x)}, expected one of images" if x is not None and len(x) < 3 else None


@_rule_for("PRelu")
def _slope_broadcasts(node: Any, facts: _Facts) -> str | None:
    x, slope = facts.shape(node, 0), facts.shape(node, 1)
    if x is None or slope is None:
        return None
    fits = len(slope) <= len(x) and all(
        a == 1 or a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(slope[::-1], x[::-1], strict=False)
    )
    return None if fits else f"slopes of shape {shape_text(slope)} for an input of shape {shape_text(x)}"


__all__ = ["check_nodes"]
