"""Pools and convolutions of exported programs over one, two and three dimensions, with or without a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.sizes import product

from .moving import reshaped, shared
from .registry import register_exported
from .values import ExportedBuilder, Unreadable


def _per_dim(values: Any, rank: int) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    return values * rank if len(values) == 1 else values


def batched(b: ExportedBuilder, x: Expr, rank: int, of: Callable[[Expr], Expr]) -> Expr:
    """Applies a function of (N, C, ...), with `rank` dimensions after C, to x; a missing N is added and removed again.

    Raises:
        ModelImportError: x does not have rank + 1 or rank + 2 dimensions.
    """
    shape = shape_of(x)
    if len(shape) == rank + 2:
        return of(x)
    if len(shape) != rank + 1:
        raise ModelImportError(f"takes a tensor of {len(shape)} dimensions, expected {rank + 1} or {rank + 2}")
    y = of(b.emit(relax.op.expand_dims(x, [0]), "batch"))
    return b.emit(relax.op.squeeze(y, [0]), "item")


def _over_image(b: ExportedBuilder, x: Expr, rank: int, of: Callable[[Expr, list[int]], Expr]) -> Expr:
    """Returns a pool over `rank` dimensions, built from 2-D pools `of(x, dims)`; -1 in `dims` is a dummy dimension.

    A pool over three dimensions is one over the last two, followed by one over the first: windows are boxes.
    """
    if rank == 2:
        return of(x, [0, 1])
    batch, channels, *sizes = shape_of(x)
    if rank == 1:
        y = of(reshaped(b, x, [batch, channels, 1, *sizes]), [-1, 0])
        return reshaped(b, y, [batch, channels, shape_of(y)[3]])
    y = of(reshaped(b, x, [batch, product([channels, sizes[0]]), *sizes[1:]]), [1, 2])
    height, width = shape_of(y)[2:]
    y = of(reshaped(b, y, [batch, channels, sizes[0], product([height, width])]), [0, -1])
    return reshaped(b, y, [batch, channels, shape_of(y)[2], height, width])


def _along_dims(values: Sequence[int], dims: list[int], default: int) -> list[int]:
    return [default if dim < 0 else values[dim] for dim in dims]


def _max_pool(rank: int) -> Callable[..., Expr]:
    def convert(
        b: ExportedBuilder, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Expr:  # fmt: skip
        """Returns the maximum over each window."""
        kernel, pads, dilations = _per_dim(kernel_size, rank), _per_dim(padding, rank), _per_dim(dilation, rank)
        strides = _per_dim(stride, rank) if stride or isinstance(stride, int) else kernel

        def pooled(y: Expr, dims: list[int]) -> Expr:
            options = (
                _along_dims(kernel, dims, 1),
                _along_dims(strides, dims, 1),
                _along_dims(pads, dims, 0),
                _along_dims(dilations, dims, 1),
            )
            return shared("aten::max_pool2d")(b, y, *options, ceil_mode)

        return batched(b, b.relax_of(x), rank, lambda y: _over_image(b, y, rank, pooled))

    return convert


def _avg_pool(rank: int) -> Callable[..., Expr]:
    def convert(
        b: ExportedBuilder, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Expr:  # fmt: skip
        """Returns the average over each window, or its sum divided by `divisor_override`."""
        kernel, pads = _per_dim(kernel_size, rank), _per_dim(padding, rank)
        strides = _per_dim(stride, rank) if stride or isinstance(stride, int) else kernel

        def pooled(y: Expr, dims: list[int]) -> Expr:
            options = (_along_dims(kernel, dims, 1), _along_dims(strides, dims, 1), _along_dims(pads, dims, 0))
            if divisor_override is None:
                return shared("aten::avg_pool2d")(b, y, *options, ceil_mode, count_include_pad)
            return _zero_padded_average(b, y, *options, ceil_mode)

        y = batched(b, b.relax_of(x), rank, lambda y: _over_image(b, y, rank, pooled))
        if divisor_override is None:
            return y
        return b.emit(relax.op.multiply(y, constant(math.prod(kernel) / divisor_override, "float32")), "divided")

    return convert


def _zero_padded_average(
    b: ExportedBuilder, x: Expr, kernel: list[int], strides: list[int], pads: list[int], ceil_mode: bool
) -> Expr:
    """Returns averages that always divide by the kernel's size; outside of x there are zeros."""
    border: list[int] = []
    for size, k, s, p in zip(shape_of(x)[2:], kernel, strides, pads, strict=True):
        if not isinstance(size, int):
            raise UnsupportedOpError("has divisor_override over a dynamic dimension; use batch='static'")
        rounded = math.ceil if ceil_mode else math.floor
        count = rounded((size + 2 * p - k) / s) + 1
        if ceil_mode and (count - 1) * s >= size + p:
            count -= 1
        border = [p, max((count - 1) * s + k - size - p, 0), *border]
    padded = shared("aten::constant_pad_nd")(b, x, border, 0.0) if any(border) else x
    return shared("aten::avg_pool2d")(b, padded, kernel, strides, 0, False, True)


def _adaptive_avg_pool(rank: int) -> Callable[..., Expr]:
    def convert(b: ExportedBuilder, x: Any, output_size: Any) -> Expr:
        """Returns the average over output_size windows."""

        def pooled(y: Expr, dims: list[int]) -> Expr:
            sizes = [None if dim < 0 else _per_dim(output_size, rank)[dim] for dim in dims]
            return shared("aten::adaptive_avg_pool2d")(b, y, sizes)

        return batched(b, b.relax_of(x), rank, lambda y: _over_image(b, y, rank, pooled))

    return convert


for _rank in (1, 2, 3):
    register_exported(f"aten::max_pool{_rank}d.default")(_max_pool(_rank))
    register_exported(f"aten::avg_pool{_rank}d.default")(_avg_pool(_rank))
    _names = [f"aten::{name}_avg_pool{_rank}d.default" for name in ("adaptive", "_adaptive")[: min(_rank, 2)]]
    register_exported(*_names)(_adaptive_avg_pool(_rank))


@dataclass(frozen=True)
class Uncomputed(Unreadable):
    """Further results of an operator, which a network does not need in inference."""

    what: str

    def expression(self, b: ExportedBuilder | None = None) -> Expr:
        """Raises UnsupportedOpError: something reads it."""
        raise UnsupportedOpError(f"reads {self.what}, which are not computed; use the operator's first result only")


@register_exported("aten::max_pool2d_with_indices.default")
def max_pool2d_with_indices(b: ExportedBuilder, x: Any, *options: Any) -> list[Any]:
    """Returns [the maximum over each window, indices that must not be read]."""
    return [_max_pool(2)(b, x, *options), Uncomputed("the indices of a max pool")]


@register_exported("aten::max_pool3d_with_indices.default")
def max_pool3d_with_indices(b: ExportedBuilder, x: Any, *options: Any) -> list[Any]:
    """Returns [the maximum over each window, indices that must not be read]."""
    return [_max_pool(3)(b, x, *options), Uncomputed("the indices of a max pool")]


# ------------------------------------------------------------------ convolutions

_CONVS = {
    1: ("conv1d", "NCW", "OIW"),
    2: ("conv2d", "NCHW", "OIHW"),
    3: ("conv3d", "NCDHW", "OIDHW"),
}
_TRANSPOSED = {
    1: ("conv1d_transpose", "NCW", "IOW"),
    2: ("conv2d_transpose", "NCHW", "IOHW"),
    3: ("conv3d_transpose", "NCDHW", "IODHW"),
}


def _kernel(weight: Any) -> list[int]:
    integers = getattr(weight, "integers", weight)
    shape = integers.shape if isinstance(integers, torch.Tensor) else shape_of(integers)
    return [int(size) for size in shape[2:]]


def _biased(b: ExportedBuilder, y: Expr, bias: Any, rank: int) -> Expr:
    if bias is None:
        return y
    if isinstance(bias, torch.Tensor):
        terms = constant(bias.detach().numpy().reshape((1, -1, *(1,) * rank)), "float32")
    else:
        bias = b.relax_of(bias)
        terms = reshaped(b, bias, [1, *shape_of(bias), *(1,) * rank])
    return b.emit(relax.op.add(y, terms), "bias")


def convolved(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, stride: Any, padding: Sequence[int], dilation: Any, groups: int
) -> Expr:
    """Returns a convolution plus a bias (1, C, 1, ...); `padding` lists the sizes before, then the sizes after."""
    rank = len(_kernel(weight))
    name, layout, kernel_layout = _CONVS[rank]

    def of(y: Expr) -> Expr:
        y = getattr(relax.op.nn, name)(
            y, b.relax_of(weight), strides=_per_dim(stride, rank), padding=list(padding),
            dilation=_per_dim(dilation, rank), groups=groups, data_layout=layout, kernel_layout=kernel_layout,
            out_dtype="float32",
        )  # fmt: skip
        return _biased(b, b.emit(y, "conv"), bias, rank)

    return batched(b, b.relax_of(x), rank, of)


@register_exported("aten::conv1d.default", "aten::conv2d.default", "aten::conv3d.default")
def conv(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Expr:  # fmt: skip
    """Returns the convolution of x with the weight, plus a bias of shape (1, C, 1, ...)."""
    pads = _per_dim(padding, len(_kernel(weight)))
    return convolved(b, x, weight, bias, stride, pads * 2, dilation, groups)


@register_exported("aten::conv1d.padding", "aten::conv2d.padding", "aten::conv3d.padding")
def conv_padding(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: str = "valid",
    dilation: Any = 1, groups: int = 1,
) -> Expr:  # fmt: skip
    """Returns the convolution plus a bias with padding `valid` or `same`; an odd total pads one more after."""
    kernel = _kernel(weight)
    steps = _per_dim(dilation, len(kernel))
    totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, kernel, strict=True)]
    before = [total // 2 for total in totals]
    after = [total - first for total, first in zip(totals, before, strict=True)]
    return convolved(b, x, weight, bias, stride, [*before, *after], dilation, groups)


@register_exported("aten::conv_transpose1d.default", "aten::conv_transpose2d.input", "aten::conv_transpose3d.input")
def conv_transpose(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Expr:  # fmt: skip
    """Returns the transposed convolution of x with the weight, plus a bias of shape (1, C, 1, ...)."""
    rank = len(_kernel(weight))
    name, layout, kernel_layout = _TRANSPOSED[rank]

    def of(y: Expr) -> Expr:
        y = getattr(relax.op.nn, name)(
            y, b.relax_of(weight), strides=_per_dim(stride, rank), padding=_per_dim(padding, rank) * 2,
            output_padding=_per_dim(output_padding, rank), dilation=_per_dim(dilation, rank), groups=groups,
            data_layout=layout, kernel_layout=kernel_layout, out_dtype="float32",
        )  # fmt: skip
        return _biased(b, b.emit(y, "conv_transpose"), bias, rank)

    return batched(b, b.relax_of(x), rank, of)


@register_exported("aten::convolution.default")
def convolution(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Expr:  # fmt: skip
    """Returns a convolution or a transposed convolution."""
    if transposed:
        return conv_transpose(b, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(b, x, weight, bias, stride, padding, dilation, groups)
