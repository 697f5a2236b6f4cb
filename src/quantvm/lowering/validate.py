"""Checks that an imported program can be compiled: its geometry, sizes, quantization parameters and constant indices.

Kernels rely on these checks. They are made once, before any other pass; conditions that depend on inputs are checked
when the code runs (`run_time_checks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from quantvm.errors import CompileError, listed
from quantvm.lowering.index_operands import index_operand_of
from quantvm.qdq.bindings import definitions, variables
from quantvm.qdq.expressions import constant_value, is_constant, op_name, shape_of
from quantvm.sizes import MOST_ELEMENTS

_Problem = str | None
_Rule = Callable[[Any], _Problem]
_RULES: dict[str, _Rule] = {}


def validate(module: tvm.IRModule) -> None:
    """Raises one CompileError for all bindings of `main` that cannot be compiled.

    Args:
        module: Relax in QDQ form.

    Afterwards it is certain that: strides, dilations, groups and windows are at least 1, and paddings at least 0; a
    window is not larger than the padded image, except in ceil_mode; a pool's window does not lie entirely in the
    padding; no tensor has more than `MOST_ELEMENTS` elements, not counting dynamic sizes; scales are positive and
    finite; scales and zero points have one length, that of their axis; constant indices exist.
    """
    problems, known = [], set()
    for param in module["main"].params:
        problem = _size_problem(param)
        if problem is not None:
            problems.append(f"the input {param.name} {problem}")
            known.add(param)
    for variable, value in definitions(module["main"]).items():
        if known.intersection(variables(value)):
            known.add(variable)  # a consequence of another problem
            continue
        name = op_name(value)
        rule = _RULES.get(name)
        problem = (rule(value) if rule else None) or _size_problem(variable)
        if problem is not None:
            problems.append(f"{name.split('.')[-1] or 'value'} at {variable.name} {problem}")
            known.add(variable)
    if problems:
        raise CompileError(f"the program cannot be compiled: {listed(problems, 6)}")


def _checks(*names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys((f"relax.{name}" for name in names), rule))
        return rule

    return register


def _size_problem(value: Any) -> _Problem:
    if getattr(value.ty, "shape", None) is None or not hasattr(value.ty.shape, "values"):
        return None
    shape = shape_of(value)
    sizes = [size for size in shape if isinstance(size, int)]
    text = f"has the shape {_text(shape)}"
    if min(sizes, default=1) < 0:
        return f"{text}; what comes before it is too small for it"
    if math.prod(sizes) > MOST_ELEMENTS:
        return f"{text}; {math.prod(sizes)} elements are more than {MOST_ELEMENTS}"
    return None


def _integers(values: Any) -> list[int]:
    return [int(value) for value in values]


def _least_problem(**attributes: list[int]) -> _Problem:
    """Returns which attribute has a value below its minimum."""
    for what, values in attributes.items():
        least = 0 if what.endswith("padding") else 1
        if min(values, default=least) < least:
            return f"has {what.replace('_', ' ')} {tuple(values)}, expected at least {least}"
    return None


def _window_problem(
    image: list[Any], kernel: list[int], strides: list[int], dilations: list[int], padding: list[int],
    may_end_outside: bool = False,
) -> _Problem:  # fmt: skip
    """Returns what is wrong with windows that move over an image; padding lists all beginnings, then all ends."""
    problem = _least_problem(strides=strides, dilations=dilations, kernel=kernel, padding=padding)
    if problem is not None:
        return problem
    padded = [
        size + padding[axis] + padding[len(kernel) + axis] if isinstance(size, int) else None
        for axis, size in enumerate(image)
    ]
    ends = zip(padded, _reach(kernel, dilations), strict=True)
    if not may_end_outside and any(size is not None and size < far for size, far in ends):
        return f"has windows of {_reach(kernel, dilations)} pixels on a padded image of {tuple(padded)}"
    if math.prod(size for size in padded if size is not None) > MOST_ELEMENTS:
        return f"has a padded image of {tuple(padded)} pixels, more than {MOST_ELEMENTS}"
    return None


def _reach(kernel: list[int], dilations: list[int]) -> tuple[int, ...]:
    """Returns how many pixels a window spans."""
    return tuple(dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True))


def _ordered(tensor: Any, layout: str, first: str) -> list[Any]:
    """Returns the sizes of a tensor, reordered: the two dimensions `first`, then those of the image."""
    sizes = dict(zip(layout, shape_of(tensor), strict=True))
    return [sizes[letter] for letter in (*first, *(letter for letter in layout if letter not in first))]


@_checks("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _convolution(call: Any) -> _Problem:
    attrs = call.attrs
    x, weight = _ordered(call.args[0], attrs.data_layout, "NC"), _ordered(call.args[1], attrs.kernel_layout, "OI")
    groups = int(attrs.groups)
    fits = not isinstance(x[1], int) or x[1] == weight[1] * groups
    if groups < 1 or not fits or weight[0] % groups:
        return f"has {groups} groups, a weight of shape {tuple(weight)} and an input of shape {_text(x)}"
    return _window_problem(
        x[2:], weight[2:], _integers(attrs.strides), _integers(attrs.dilation), _integers(attrs.padding)
    )


@_checks("nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose")
def _transposed_convolution(call: Any) -> _Problem:
    attrs = call.attrs
    x, weight = _ordered(call.args[0], attrs.data_layout, "NC"), _ordered(call.args[1], attrs.kernel_layout, "IO")
    groups, added = int(attrs.groups), _integers(attrs.output_padding)
    fits = not isinstance(x[1], int) or x[1] == weight[0]
    if groups < 1 or not fits or weight[0] % groups:
        return f"has {groups} groups, a weight of shape {tuple(weight)} and an input of shape {_text(x)}"
    return _least_problem(
        strides=_integers(attrs.strides), dilations=_integers(attrs.dilation), kernel=weight[2:],
        padding=_integers(attrs.padding), output_padding=added,
    )  # fmt: skip


@_checks(*(f"nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)))
def _pool(call: Any) -> _Problem:
    attrs, image = call.attrs, _ordered(call.args[0], call.attrs.layout, "NC")[2:]
    kernel, dilations = _integers(attrs.pool_size), _integers(attrs.dilation)
    padding = _integers(attrs.padding)
    problem = _window_problem(image, kernel, _integers(attrs.strides), dilations, padding, bool(attrs.ceil_mode))
    reach = _reach(kernel, dilations)
    if problem is None and any(pad >= far for pad, far in zip(padding, reach * 2, strict=True)):
        problem = f"has padding {tuple(padding)} around windows of {reach} pixels, expected less"
    return problem


@_checks("quantize", "dequantize")
def _quantization(call: Any) -> _Problem:
    if not all(is_constant(argument) for argument in call.args[1:3]):
        return None
    x, scale, zero_point = shape_of(call.args[0]), constant_value(call.args[1]), constant_value(call.args[2])
    wrong = ~(np.isfinite(scale) & (scale > 0))
    if wrong.any():
        return f"has the scale {scale[wrong].ravel()[0]}, expected a positive, finite one"
    if scale.shape != zero_point.shape or scale.ndim > 1:
        return f"has scales of shape {scale.shape} and zero points of shape {zero_point.shape}, expected one shape"
    stored = str(call.attrs.out_dtype) if call.op.name == "relax.quantize" else str(call.args[0].ty.dtype)
    if str(zero_point.dtype) != stored and stored in ("int8", "uint8"):
        return f"has zero points of {zero_point.dtype}, and integers of {stored}"
    if not scale.ndim:
        return None
    axis = int(call.attrs.axis)
    if not -len(x) <= axis < len(x):
        return f"has the axis {axis} of a tensor of {len(x)} dimensions"
    if isinstance(x[axis], int) and x[axis] != len(scale):
        return f"has {len(scale)} scales for the {x[axis]} slices along axis {axis}"
    return None


@_checks("take", "gather_elements", "scatter_elements", "gather_nd", "scatter_nd")
def _indices(call: Any) -> _Problem:
    found = index_operand_of(call)
    if found is None or not is_constant(call.args[found.operand]):
        return None
    places = constant_value(call.args[found.operand])
    for index, size in enumerate(found.sizes):
        problem = _outside(places[..., index] if found.is_per_entry else places, size)
        if problem is not None:
            return problem
    return None


def _outside(places: np.ndarray, size: Any) -> _Problem:
    if not isinstance(size, int):
        return None
    outside = places[(places < -size) | (places >= size)]
    return f"takes place {outside.ravel()[0]} of {size}" if outside.size else None


def _text(shape: list[Any]) -> str:
    return f"({', '.join(map(str, shape))})"
