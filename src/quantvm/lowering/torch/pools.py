"""Lowerings of pools; PyTorch's rounding there depends on the memory format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantvm.kernels.pool import pool
from quantvm.kernels.pool.pool import PoolShape
from quantvm.layer_rules import Window
from quantvm.lowering.tensors import Tensor, of_single_pixels
from quantvm.numerics import dispatch
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import is_call

from .legalize import Legalization, legalizes


def pool_shape(call: Any, x: Tensor) -> PoolShape:
    """Returns the geometry of a max_pool2d or avg_pool2d call."""
    window = pool_window(call)
    return PoolShape(
        x.shape[2], x.shape[3], x.shape[1], kernel=window.kernel, stride=window.stride, padding=window.padding,
        dilation=window.dilation, ceil_mode=window.ceil_mode,
    )  # fmt: skip


def pool_window(call: Any) -> Window:
    """Returns the window of a max_pool2d or avg_pool2d call."""
    attrs = call.attrs
    top, left, bottom, right = (int(v) for v in attrs.padding)
    include = True if is_call(call, "relax.nn.max_pool2d") else bool(attrs.count_include_pad)
    return Window(
        _pair(attrs.pool_size), _pair(attrs.strides), (top, left, bottom, right), _pair(attrs.dilation),
        ceil_mode=bool(attrs.ceil_mode), count_include_pad=include,
    )  # fmt: skip


def is_spatial_mean(call: Any) -> bool:
    """Returns whether an expression is a mean over height and width."""
    if not is_call(call, "relax.mean") or len(call.args[0].ty.shape) != 4 or call.attrs.axis is None:
        return False
    return sorted(int(a) % 4 for a in call.attrs.axis) == [2, 3]


def reduced_axes(call: Any) -> list[int] | None:
    """Returns the axes of a mean or sum that does not reduce the batch; None for other calls."""
    if not (is_call(call, "relax.mean") or is_call(call, "relax.sum")) or call.attrs.axis is None:
        return None
    axes = sorted(int(axis) % len(call.args[0].ty.shape) for axis in call.attrs.axis)
    return axes if 0 not in axes else None


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    """Returns the form of a pool's result: PyTorch keeps channels-last only for tensors without gaps."""
    channels_last = x.channels_last and x.behaves_channels_last
    return replace(x, shape=(x.shape[0], x.shape[1], height, width), channels_last=channels_last, strides=None)


def _by_qnnpack(like: Tensor) -> Tensor:
    """Returns the form of a QNNPACK pool's result, which is allocated as channels-last; single pixels stay so."""
    return replace(like, channels_last=like.channels_last or like.shape[2:] == (1, 1))


@legalizes("max_pool2d")
def lower_max_pool2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The maximum of the integers in each window."""
    x = state.nhwc(inputs[0])
    shape = pool_shape(composite.call("relax.nn.max_pool2d"), x)
    like = _resized(x, shape.out_height, shape.out_width)
    dtype = composite.output.dtype
    follows_torch = state.numerics == "torch"
    if follows_torch and dispatch.max_pool2d_is_qnnpacks(state.pytorch, dtype, ceil_mode=shape.ceil_mode):
        kernel = pool.max_pool2d(shape, dtype, repeats_border=shape.dilation != (1, 1))
        return state.run(kernel, [x], _by_qnnpack(like), dtype, name)
    y = state.run(pool.max_pool2d(shape, dtype), [x], like, dtype, name)
    return of_single_pixels(state.builder, x, y, name) if follows_torch else y


@legalizes("avg_pool2d")
def lower_avg_pool2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The average over windows."""
    x = state.nhwc(inputs[0])
    call = composite.call("relax.nn.avg_pool2d")
    shape = pool_shape(call, x)
    like = _resized(x, shape.out_height, shape.out_width)
    choice = dispatch.avg_pool2d_choice(
        state.pytorch, composite.output.dtype, ceil_mode=shape.ceil_mode, channels_last=x.behaves_channels_last
    )
    if choice.formula == "qnnpack":
        kernel = pool.avg_pool2d_qnnpack(shape, composite.output)
        return state.run(kernel, [x], _by_qnnpack(like), composite.output.dtype, name)
    kernel = pool.avg_pool2d(
        shape, composite.output, count_include_pad=bool(call.attrs.count_include_pad),
        vec_channels=choice.vec_channels, channels_last=choice.formula == "channels_last", isa=state.isa,
    )  # fmt: skip
    return of_single_pixels(state.builder, x, state.run(kernel, [x], like, composite.output.dtype, name), name)


def whole_image(x: Tensor) -> PoolShape:
    """Returns the geometry of one window over the image."""
    size = (x.shape[2], x.shape[3])
    return PoolShape(*size, x.shape[1], kernel=size, stride=size)


@legalizes("adaptive_avg_pool2d")
def lower_adaptive_avg_pool2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The average over a given number of windows."""
    x = state.nhwc(inputs[0])
    height, width = (int(v) for v in composite.call("relax.nn.adaptive_avg_pool2d").attrs.output_size)
    in_size, channels_last = (x.shape[2], x.shape[3]), x.behaves_channels_last
    choice = dispatch.adaptive_avg_pool2d_choice(
        state.pytorch, composite.output.dtype, in_size, (height, width), channels_last=channels_last
    )
    if choice.window is not None:
        shape = PoolShape(*in_size, x.shape[1], kernel=choice.window, stride=choice.window)
        kernel = pool.avg_pool2d_qnnpack(shape, composite.output)
        return state.run(kernel, [x], _by_qnnpack(_resized(x, height, width)), composite.output.dtype, name)
    kernel = pool.adaptive_avg_pool2d(
        in_size, x.shape[1], (height, width), composite.output, channels_last=channels_last
    )
    y = state.run(kernel, [x], _resized(x, height, width), composite.output.dtype, name)
    return of_single_pixels(state.builder, x, y, name)
