"""What operators without a kernel of ours do to the memory format that PyTorch would hold their result in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .tensors import Tensor

_ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "where", "exp", "sqrt", "negative",
        "sigmoid", "tanh", "clip", "nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.prelu", "concat",
    )
)  # fmt: skip
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


def formatted(result: Any, op: str, arguments: list[Any]) -> Any:
    """Returns the result of a float operator in the memory format of its first 4-d operand of more than one pixel."""
    if not isinstance(result, Tensor) or len(result.shape) != 4 or op not in _FOLLOW_INPUT:
        return result
    first = next((x for x in arguments if isinstance(x, Tensor) and len(x.shape) == 4), None)
    return replace(result, channels_last=True) if first is not None and first.channels_last else result


def permuted(x: Any, axes: list[int]) -> Tensor | None:
    """Returns a permutation between NCHW and NHWC as another view of the same memory, or None if it is none."""
    if not isinstance(x, Tensor) or len(x.shape) != 4 or any(x.border):
        return None
    shape = tuple(x.shape[axis] for axis in axes)
    if axes == _TO_CHANNELS_LAST and not x.channels_last and x.layout == "NCHW":
        return Tensor(x.expr, shape, "NHWC", channels_last=True)
    if axes == _FROM_CHANNELS_LAST and x.channels_last and x.layout == "NHWC":
        return Tensor(x.expr, shape, "NCHW")
    return None
