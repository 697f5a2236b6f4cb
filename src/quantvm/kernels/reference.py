"""NumPy oracles of the kernels: slow, plain, exact. Each is named like its kernel, with `_ref` appended.

Activations are NHWC integers; arithmetic is in int64, and in float32 with one rounding per operation. Tests compare the
oracles with PyTorch's own operators, and the kernels with both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantvm.kernels.pool.pool import PoolShape
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics import binary
from quantvm.numerics.averages import adaptive_scale
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.requantization import Requantization, requantize
from quantvm.numerics.tensor_iterator import vectorised_cut
from quantvm.numerics.torch_engines import (
    QuantParams,
    f32,
    quantize_arr,
    quantize_val,
)

Integers = NDArray[np.int64]


def _windows(shape: Conv2dShape, x: NDArray, zero_point: int) -> Integers:
    """Returns what each output pixel reads, (N, OH, OW, KH, KW, C); the zero point outside of the image."""
    top, left, bottom, right = shape.padding
    padded = np.pad(
        x.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero_point
    )  # fmt: skip
    taps = []
    for kh in range(shape.kernel[0]):
        for kw in range(shape.kernel[1]):
            row, column = kh * shape.dilation[0], kw * shape.dilation[1]
            rows = slice(row, row + shape.stride[0] * (shape.out_height - 1) + 1, shape.stride[0])
            columns = slice(column, column + shape.stride[1] * (shape.out_width - 1) + 1, shape.stride[1])
            taps.append(padded[:, rows, columns])
    stacked = np.stack(taps, 3)
    return stacked.reshape(*stacked.shape[:3], *shape.kernel, x.shape[-1])


def conv2d_u8i8acc32_ref(
    shape: Conv2dShape, x: NDArray, weight: NDArray, zero_point: int, requantization: Requantization
) -> Integers:
    """Returns the convolution of `conv2d`: requantize(sum (x - zx) * w); see `accumulators_ref`."""
    return requantize(accumulators_ref(shape, x, weight, zero_point), requantization)


def accumulators_ref(shape: Conv2dShape, x: NDArray, weight: NDArray, zero_point: int) -> Integers:
    """Returns (N, OH, OW, O) sums of (x - zx) * w.

    Args:
        shape: geometry.
        x: (N, H, W, C) integers.
        weight: (O, KH, KW, C/groups) integers, their zero point subtracted.
        zero_point: zero point of x and value of the padding.
    """
    windows = _windows(shape, x, zero_point) - zero_point
    group_in, group_out = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    parts = []
    for g in range(shape.groups):
        w = weight[g * group_out : (g + 1) * group_out].astype(np.int64)
        parts.append(np.einsum("nhwabc,oabc->nhwo", windows[..., g * group_in : (g + 1) * group_in], w))
    return np.concatenate(parts, -1)


def paired_accumulators_ref(
    shape: Conv2dShape, x: NDArray, weight: NDArray, weight_zero_points: NDArray, zero_point: int, *, cross_taps: bool
) -> Integers:
    """Returns (N, OH, OW, O) sums of (x - zx) * (w - zw), pairs of the raw products x * w saturated to int16.

    Args:
        shape: geometry.
        x: (N, H, W, C) integers.
        weight: (O, KH, KW, C/groups) integers as stored.
        weight_zero_points: (O,) integers.
        zero_point: zero point of x and value of the padding.
        cross_taps: whether products are paired along the whole window, in the order (row, column, channel), as in
            FBGEMM, and not along the channels of each tap, as in oneDNN.
    """
    windows = _windows(shape, x, zero_point)
    group_in, group_out = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    parts = []
    for g in range(shape.groups):
        taps = windows[..., g * group_in : (g + 1) * group_in]
        w = weight[g * group_out : (g + 1) * group_out].astype(np.int64)
        zw = weight_zero_points[g * group_out : (g + 1) * group_out].astype(np.int64)
        products = taps[..., None, :, :, :] * w
        kept = products.shape[:4]
        products = products.reshape(*kept, 1, -1) if cross_taps else products.reshape(*kept, -1, group_in)
        products = np.pad(products, [(0, 0)] * 5 + [(0, products.shape[-1] % 2)])
        pairs = np.clip(products[..., 0::2] + products[..., 1::2], -32768, 32767).sum((-1, -2))
        x_sum = (taps - zero_point).sum((-1, -2, -3))
        parts.append(pairs - zero_point * w.sum((1, 2, 3)) - x_sum[..., None] * zw)
    return np.concatenate(parts, -1)


def depthwise_conv2d_u8i8acc32_ref(
    shape: Conv2dShape, x: NDArray, weight: NDArray, weight_zero_points: NDArray, zero_point: int,
    requantization: Requantization, *, saturate_pairs: bool,
) -> Integers:  # fmt: skip
    """Returns the convolution of `depthwise_conv2d`, optionally with sums of two products saturated to int16.

    Args:
        shape: geometry; groups == in_channels.
        x: (N, H, W, C) integers.
        weight: (O, KH, KW, 1) int8.
        weight_zero_points: (O,) integers.
        zero_point: zero point of x and value of the padding.
        requantization: formula and per-channel vectors.
        saturate_pairs: whether sums of two products saturate, as in FBGEMM.
    """
    taps = shape.kernel[0] * shape.kernel[1]
    windows = np.repeat(_windows(shape, x, zero_point), shape.out_channels // shape.in_channels, -1)
    values = windows.reshape(*windows.shape[:3], taps, shape.out_channels)
    w = weight.reshape(shape.out_channels, taps).T.astype(np.int64)
    products = values * w
    pairs = [products[..., i : i + 2, :].sum(-2) for i in range(0, taps, 2)]
    acc = sum(np.clip(p, -32768, 32767) if saturate_pairs else p for p in pairs)
    acc = acc - zero_point * w.sum(0) - weight_zero_points.astype(np.int64) * (values.sum(-2) - taps * zero_point)
    return requantize(acc, requantization)


def add_u8_ref(
    a: NDArray, b: NDArray, a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool, pytorch: PyTorch
) -> Integers:
    """Returns `add` of two tensors of one shape, in memory order."""
    vectorised = vectorised_cut(a.size, pytorch).reshape(a.shape)
    return binary.add(a, b, (a_q, b_q), out_q, relu=relu, vectorised=vectorised)


def mul_u8_ref(
    a: NDArray, b: NDArray, a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool
) -> Integers:
    """Returns `multiply` of two tensors whose shapes broadcast."""
    return binary.multiply(a, b, (a_q, b_q), out_q, relu=relu)


def concat_nhwc_u8_ref(xs: Sequence[NDArray], inputs: Sequence[QuantParams], out_q: QuantParams) -> Integers:
    """Returns `concat_nhwc` along channels; inputs are requantized unless their parameters are the output's."""
    parts = []
    for x, q in zip(xs, inputs, strict=True):
        if q == out_q:
            parts.append(x.astype(np.int64))
            continue
        cut = x.shape[-1] // 8 * 8
        main, tail = binary.concatenated(x, q, out_q)
        parts += [main[..., :cut], tail[..., cut:]]
    return np.concatenate(parts, -1)


def max_pool2d_u8_ref(shape: PoolShape, x: NDArray, *, repeats_border: bool = False) -> Integers:
    """Returns `max_pool2d`: the integer maximum over each window; padding is ignored, or repeats the border."""
    out = np.empty((x.shape[0], shape.out_height, shape.out_width, shape.channels), np.int64)
    for i in range(shape.out_height):
        for j in range(shape.out_width):
            rows, columns = (
                [axis.start(at) + k * axis.dilation for k in range(axis.kernel)]
                for axis, at in ((shape.axis(0), i), (shape.axis(1), j))
            )
            if repeats_border:
                rows = [min(max(r, 0), shape.in_height - 1) for r in rows]
                columns = [min(max(c, 0), shape.in_width - 1) for c in columns]
            rows = [r for r in rows if 0 <= r < shape.in_height]
            columns = [c for c in columns if 0 <= c < shape.in_width]
            out[:, i, j] = x[:, rows][:, :, columns].max((1, 2), initial=np.iinfo(x.dtype).min)
    return out


def adaptive_avg_pool2d_u8_ref(x: NDArray, out_size: tuple[int, int], q: QuantParams) -> Integers:
    """Returns `adaptive_avg_pool2d` of a channels-last tensor."""
    n, height, width, channels = x.shape
    out = np.empty((n, *out_size, channels), np.int64)
    cut = channels // 8 * 8
    for i in range(out_size[0]):
        for j in range(out_size[1]):
            rows = slice(i * height // out_size[0], -(-(i + 1) * height // out_size[0]))
            columns = slice(j * width // out_size[1], -(-(j + 1) * width // out_size[1]))
            window = x[:, rows, columns].astype(np.int64)
            size = window.shape[1] * window.shape[2]
            acc = (window.sum((1, 2)) - q.zero_point * size).astype(f32)
            step = QuantParams(float(adaptive_scale(size)), q.zero_point, q.dtype)
            out[:, i, j, :cut] = quantize_arr(acc[:, :cut], step)
            out[:, i, j, cut:] = quantize_val(acc[:, cut:], step)
    return out
