"""Packs weights and per-channel vectors of a contraction in the order in which its kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantvm.kernels.builder import LANES, ceil_div
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics.requantization import Requantization

from .dot import DotProduct
from .split_weights import Excess, split_pairs


def padding_saturates(weight: np.ndarray, input_zero_point: int) -> bool:
    """Returns whether in the padding a sum of two products, along the channels of a tap, can exceed int16.

    Args:
        weight: (O, KH, KW, I/groups) int8.
        input_zero_point: value of the padding.
    """
    pairs = np.pad(weight, ((0, 0),) * 3 + ((0, weight.shape[3] % 2),)).astype(np.int64)
    products = input_zero_point * (pairs[..., ::2] + pairs[..., 1::2])
    return bool(products.max() > 32767 or products.min() < -32768)


def start_without_padding(
    shape: Conv2dShape, weight: np.ndarray, zero_points: np.ndarray | None, input_zero_point: int
) -> np.ndarray:
    """Returns (OH, OW, groups * vectors * LANES) int32, -zx * sum(w - zw) over the taps inside of the image.

    If accumulators start with these values and the padding holds the integer 0, taps in the padding are left out.

    Args:
        shape: geometry.
        weight: (O, KH, KW, I/groups) int8.
        zero_points: (O,); None: all are zero.
        input_zero_point: zero point of the activations.
    """
    group_out = shape.out_channels // shape.groups
    group_padded = ceil_div(group_out, LANES) * LANES
    taps = weight.astype(np.int64)
    if zero_points is not None:
        taps = taps - zero_points.reshape(-1, 1, 1, 1).astype(np.int64)
    is_inside = [
        np.array([[0 <= o * stride + k * dilation - pad < size for k in range(kernel)] for o in range(out)], np.int64)
        for size, out, kernel, stride, dilation, pad in zip(
            (shape.in_height, shape.in_width), (shape.out_height, shape.out_width), shape.kernel, shape.stride,
            shape.dilation, shape.padding[:2], strict=True,
        )
    ]  # fmt: skip
    sums = np.einsum("yr,xc,orc->yxo", *is_inside, taps.sum(3), optimize=True)
    start = np.zeros((shape.out_height, shape.out_width, shape.groups, group_padded), np.int32)
    start[..., :group_out] = -input_zero_point * sums.reshape(*sums.shape[:2], shape.groups, group_out)
    return start.reshape(shape.out_height, shape.out_width, -1)


@dataclass(frozen=True)
class PackedWeight:
    """A weight as `conv2d` reads it.

    Attributes:
        weight: (groups * vectors, passes * rows, columns, steps, LANES * k_step) integers, zero-padded.
        start: (groups * vectors * LANES,) int32, -zx * sum(w - zw): initial accumulators.
        window: rows and columns of the window; one column if each row is one run of bytes.
        passes: number of passes over the window, each with other weights.
        largest: no product's absolute value is greater than 255 times this.
        excess: excess of a split weight, if there is any.
    """

    weight: np.ndarray
    start: np.ndarray
    window: tuple[int, int]
    passes: int
    largest: int
    excess: Excess | None = None


def pack_weight(
    shape: Conv2dShape, weight: np.ndarray, input_zero_point: int, dot: DotProduct, *, merged: bool,
    zero_points: np.ndarray | None,
) -> PackedWeight:  # fmt: skip
    """Returns the packed weight.

    Args:
        shape: geometry.
        weight: (O, KH, KW, I/groups) int8 or int16.
        input_zero_point: zero point of the activations.
        dot: how products are accumulated.
        merged: whether a row of the window is one run of bytes, padded to whole steps only at its end.
        zero_points: (O,) zero points of the weight, which further passes subtract; None: they are already subtracted.
    """
    group_out = shape.out_channels // shape.groups
    group_padded = ceil_div(group_out, LANES) * LANES
    if merged:
        weight = weight.reshape(shape.out_channels, shape.kernel[0], 1, -1)
    passes = [weight]
    sums = weight.reshape(shape.groups, group_out, -1).astype(np.int64).sum(2)
    if zero_points is not None and zero_points.any():
        passes += _zero_point_passes(weight, zero_points)
        sums = sums - zero_points.reshape(shape.groups, -1).astype(np.int64) * weight[0].size
    packed = [np.concatenate([dot.pack(w) for w in np.split(each, shape.groups)]) for each in passes]
    start = np.zeros((shape.groups, group_padded), np.int32)
    start[:, :group_out] = -input_zero_point * sums
    whole, excess = np.ascontiguousarray(np.concatenate(packed, 1)), None
    if dot.add_odd is not None:
        whole, excess = split_pairs(whole, dot)
    return PackedWeight(
        whole, start.reshape(-1), (shape.kernel[0], 1) if merged else shape.kernel, len(passes),
        int(sum(np.abs(each.astype(int)).max() for each in passes)),
        excess if excess is not None and len(excess.weight) else None,
    )  # fmt: skip


def _zero_point_passes(weight: np.ndarray, zero_points: np.ndarray) -> list[np.ndarray]:
    """Returns weights whose products add up to -zw * x; even and odd channels are separate, so that no pair saturates.

    128, which does not fit int8, is the sum of two weights.
    """
    minus = np.broadcast_to(-zero_points.astype(np.int16).reshape(-1, 1, 1, 1), weight.shape)
    parts = [minus] if minus.max() <= 127 else [minus // 2, minus - minus // 2]
    is_even = np.arange(weight.shape[3]) % 2 == 0
    return [np.where(chosen, part, 0).astype(np.int8) for part in parts for chosen in (is_even, ~is_even)]


def spread_requantization(r: Requantization, groups: int, group_padded: int) -> Requantization:
    """Returns `r` with each group's channels padded to whole vectors."""

    def spread(vector: np.ndarray) -> np.ndarray:
        out = np.zeros((groups, group_padded), vector.dtype)
        out[:, : vector.size // groups] = vector.reshape(groups, -1)
        return out.reshape(-1)

    return r if groups == 1 else r.mapped(spread)
