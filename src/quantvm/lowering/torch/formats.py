"""The strides that PyTorch gives to results of operators that have no kernel of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantvm.lowering import strides as torch_strides
from quantvm.lowering.strides import Strides
from quantvm.lowering.tensors import Tensor, with_strides
from quantvm.numerics.float_operators import RELAX_OPERATORS

_ELEMENTWISE = frozenset((*RELAX_OPERATORS, "relax.where", "relax.nn.prelu", "relax.astype"))
_FOLLOW_INPUT = _ELEMENTWISE | frozenset(
    f"relax.{name}"
    for name in (
        "nn.conv2d",
        "nn.max_pool2d",
        "nn.avg_pool2d",
        "nn.adaptive_avg_pool2d",
        "nn.pad",
        "image.resize2d",
        "take",
    )
)
_TO_CHANNELS_LAST, _FROM_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def formatted(result: Any, call: Any, arguments: list[Any]) -> Any:
    """Returns the result of an operator with PyTorch's strides.

    Args:
        result: the result, without PyTorch's strides.
        call: the operator's call.
        arguments: its activations.
    """
    operands = [x for x in arguments if isinstance(x, Tensor)]
    if not isinstance(result, Tensor) or not operands:
        return result
    name = call.op.name
    if name in _VIEWS:
        strides = _VIEWS[name](operands[0], call, result.shape)
        return result if strides is None else with_strides(result, strides)
    if name == "relax.concat":
        return replace(result, channels_last=all(x.channels_last for x in operands))
    if name not in _FOLLOW_INPUT:
        return result
    alike = next((x for x in operands if _equal(x.shape, result.shape)), None)
    if name in _ELEMENTWISE and alike is not None:
        return with_strides(result, torch_strides.preserved(alike.shape, alike.torch_strides))
    first = next((x for x in operands if len(x.shape) == 4), None)
    return replace(result, channels_last=len(result.shape) == 4 and first is not None and first.channels_last)


def _equal(a: Any, b: Any) -> bool:
    return torch_strides.equal(tuple(a), tuple(b))


def permuted(x: Any, axes: list[int]) -> Tensor | None:
    """Returns a permutation between NCHW and NHWC as a view of the same memory; None for other permutations."""
    if not isinstance(x, Tensor) or len(x.shape) != 4 or any(x.border) or x.is_view:
        return None
    shape = tuple(x.shape[axis] for axis in axes)
    if axes == _TO_CHANNELS_LAST and not x.channels_last and x.layout == "NCHW":
        return Tensor(x.expr, shape, "NHWC", channels_last=True)
    if axes == _FROM_CHANNELS_LAST and x.channels_last and x.layout == "NHWC":
        return Tensor(x.expr, shape, "NCHW")
    return None


# ------------------------------------------------------------------ views: (input, call, result's shape) -> strides


def _reshaped(x: Tensor, call: Any, shape: Any) -> Strides | None:
    """Returns the strides of a reshape; one to the tensor's own shape stands for `contiguous()`."""
    if len(shape) == len(x.shape) and _equal(shape, x.shape):
        return None
    return torch_strides.viewed(x.shape, x.torch_strides, shape)


def _permuted(x: Tensor, call: Any, shape: Any) -> Strides:
    rank = len(x.shape)
    axes = [int(axis) % rank for axis in call.attrs.axes] if call.attrs.axes is not None else range(rank)[::-1]
    return tuple(x.torch_strides[axis] for axis in axes)


def _sliced(x: Tensor, call: Any, shape: Any) -> Strides:
    parts = [part for part in call.args[1:] if hasattr(part, "__len__")]  # axes, begins, ends, and steps perhaps
    axes = [int(getattr(axis, "value", axis)) % len(shape) for axis in parts[0]]
    steps = [int(getattr(step, "value", step)) for step in parts[3]] if len(parts) > 3 else [1] * len(axes)
    strides = list(x.torch_strides)
    for axis, step in zip(axes, steps, strict=True):
        strides[axis] = strides[axis] * step
    return tuple(strides)


def _unsqueezed(x: Tensor, call: Any, shape: Any) -> Strides:
    strides, sizes = list(x.torch_strides), list(x.shape)
    for axis in sorted(int(axis) % len(shape) for axis in call.attrs.axis):
        strides.insert(axis, strides[axis] * sizes[axis] if axis < len(sizes) else 1)
        sizes.insert(axis, 1)
    return tuple(strides)


def _squeezed(x: Tensor, call: Any, shape: Any) -> Strides:
    axes = call.attrs.axis
    removed = (
        {i for i, size in enumerate(x.shape) if isinstance(size, int) and size == 1}
        if axes is None
        else {int(axis) % len(x.shape) for axis in axes}
    )
    return tuple(stride for i, stride in enumerate(x.torch_strides) if i not in removed)


def _expanded(x: Tensor, call: Any, shape: Any) -> Strides:
    return torch_strides.expanded(x.shape, x.torch_strides, shape)


_VIEWS: dict[str, Callable[[Tensor, Any, Any], Strides | None]] = {
    "relax.reshape": _reshaped,
    "relax.permute_dims": _permuted,
    "relax.strided_slice": _sliced,
    "relax.expand_dims": _unsqueezed,
    "relax.squeeze": _squeezed,
    "relax.broadcast_to": _expanded,
}
