"""Pooling, spatial means and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, shape_of
from quantvm.frontend.registry import register_converter


def _pair(values: Sequence[int] | int) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    return values * 2 if len(values) == 1 else values


def _both_sides(padding: Sequence[int] | int) -> list[int]:
    return _pair(padding) * 2


@register_converter("aten::max_pool2d", "quantized::max_pool2d")
def max_pool2d(
    b: QdqBuilder,
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> QTensor | Expr:
    """Returns the maximum over each window, with the input's parameters."""
    y = relax.op.nn.max_pool2d(
        b.real(x), pool_size=_pair(kernel_size), strides=_pair(stride or kernel_size), padding=_both_sides(padding),
        dilation=_pair(dilation), ceil_mode=bool(ceil_mode), layout="NCHW",
    )  # fmt: skip
    return b.quantized_like(x, b.emit(y, "max_pool"))


@register_converter("aten::avg_pool2d")
def avg_pool2d(
    b: QdqBuilder, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> QTensor | Expr:  # fmt: skip
    """Returns the average over each window, with the input's parameters."""
    if divisor_override is not None:
        raise ModelImportError(f"avg_pool2d at {b.where} with divisor_override={divisor_override} is not supported")
    y = relax.op.nn.avg_pool2d(
        b.real(x), pool_size=_pair(kernel_size), strides=_pair(stride or kernel_size), padding=_both_sides(padding),
        ceil_mode=bool(ceil_mode), count_include_pad=bool(count_include_pad), layout="NCHW",
    )  # fmt: skip
    return b.quantized_like(x, b.emit(y, "avg_pool"))


@register_converter("aten::adaptive_avg_pool2d")
def adaptive_avg_pool2d(b: QdqBuilder, x: Any, output_size: Any) -> QTensor | Expr:
    """Returns the average over output_size windows, with the input's parameters."""
    size = [int(d) if s is None else int(s) for s, d in zip(_pair(output_size), shape_of(x)[2:], strict=True)]
    y = relax.op.nn.adaptive_avg_pool2d(b.real(x), output_size=size, layout="NCHW")
    return b.quantized_like(x, b.emit(y, "adaptive_avg_pool"))


@register_converter("aten::mean")
def mean(b: QdqBuilder, x: Any, dim: Any, keepdim: bool = False, dtype: Any = None) -> QTensor | Expr:
    """Returns the mean over the dimensions, or over all of them, with the input's parameters."""
    is_over_all = dim is None or isinstance(dim, int) or not dim  # an int is the dtype in mean(x, dtype)
    dims = list(range(len(shape_of(x)))) if is_over_all else list(dim)
    return b.quantized_like(x, b.emit(relax.op.mean(b.real(x), dims, bool(keepdim)), "mean"))


@register_converter("quantized::cat")
def quantized_cat(
    b: QdqBuilder, tensors: Sequence[Any], dim: int, scale: float | None, zero_point: int | None
) -> QTensor:
    """Returns quantize(concat(dequantize(x_i))); without parameters, the first input's are used."""
    first = b.expect_quantized("quantized::cat", *tensors)[0].q
    out = first if scale is None else b.params(scale, 0 if zero_point is None else zero_point, first.dtype)
    y = b.emit(relax.op.concat([b.real(t) for t in tensors], dim), "cat")
    return b.quantized(y, out)


@register_converter("aten::cat")
def cat(b: QdqBuilder, tensors: Sequence[Any], dim: int = 0) -> QTensor | Expr:
    """Returns the concatenation; quantized tensors get the first one's parameters."""
    if any(isinstance(t, QTensor) for t in tensors):
        return quantized_cat(b, tensors, dim, None, None)
    return b.emit(relax.op.concat([b.real(t) for t in tensors], dim), "cat")
