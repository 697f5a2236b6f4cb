"""Packed weights and the values with which accumulators start, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.kernels.builder import LANES
from quantvm.kernels.conv.dot import PORTABLE
from quantvm.kernels.conv.packing import pack_weight, padding_saturates, spread_requantization, start_without_padding
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics.requantization import requantization
from quantvm.numerics.torch_engines import QuantParams

SHAPE = Conv2dShape(
    5, 6, 6, 4, kernel=(3, 2), stride=(2, 1), padding=(1, 2, 1, 0), dilation=(1, 2), groups=2
)  # fmt: skip


def weights(shape: Conv2dShape, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups)).astype(
        np.int8
    )


@pytest.mark.parametrize(
    ("first", "second", "zero_point", "saturates"),
    [(64, 64, 255, False), (65, 64, 255, True), (-64, -64, 255, False), (-65, -64, 255, True), (127, 127, 0, False)],
)
def test_pairs_in_the_padding(first, second, zero_point, saturates):
    weight = np.zeros((1, 1, 1, 3), np.int8)
    weight[..., :2] = first, second
    assert padding_saturates(weight, zero_point) == saturates
    weight[..., :] = 0, first, second  # not a pair: pairs begin at even channels
    assert not padding_saturates(weight, zero_point)


@pytest.mark.parametrize("zero_points", [None, np.array([3, 0, -128, 127])], ids=["symmetric", "asymmetric"])
def test_starts_without_padding(zero_points):
    weight, zx = weights(SHAPE), 100
    taps = weight.astype(np.int64) - (0 if zero_points is None else zero_points.reshape(-1, 1, 1, 1))
    found = start_without_padding(SHAPE, weight, zero_points, zx)
    assert found.shape == (SHAPE.out_height, SHAPE.out_width, 2 * LANES)
    expected = np.zeros((SHAPE.out_height, SHAPE.out_width, 2, LANES), np.int64)
    for y, x, o in np.ndindex(SHAPE.out_height, SHAPE.out_width, 4):
        inside = [
            taps[o, r, c].sum()
            for r in range(3) for c in range(2)
            if 0 <= y * 2 + r - 1 < 5 and 0 <= x + 2 * c - 2 < 6
        ]  # fmt: skip
        expected[y, x, o // 2, o % 2] = -zx * sum(inside)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("zero_points", [None, np.array([3, 0, -128, 127])], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("merged", [False, True])
def test_packed_weights_hold_every_weight_and_start_at_minus_the_zero_points(zero_points, merged):
    weight, zx = weights(SHAPE, 1), 100
    packed = pack_weight(SHAPE, weight, zx, PORTABLE, merged=merged, zero_points=zero_points)
    taps = weight.astype(np.int64).reshape(4, -1) - (0 if zero_points is None else zero_points.reshape(-1, 1))
    start = packed.start.reshape(2, LANES)
    np.testing.assert_array_equal(start[:, :2].reshape(-1), -zx * taps.sum(1))
    assert not start[:, 2:].any()
    assert packed.window == ((3, 1) if merged else (3, 2))
    # 128 does not fit int8, and takes two weights; even and odd channels are apart
    assert packed.passes == (1 if zero_points is None else 5)
    expected = weight.astype(np.int64).sum()
    if zero_points is not None:
        expected = expected - int(zero_points.sum()) * weight[0].size
    assert packed.weight.astype(np.int64).sum() == expected


def test_requantizations_are_spread_over_whole_vectors():
    scales = np.arange(1.0, 5.0)
    r = requantization(
        "fbgemm", "conv", input_q=QuantParams(1.0, 0), weight_scales=scales, bias_f32=None,
        output_q=QuantParams(1.0, 0), relu=False, channels=4,
    )  # fmt: skip
    assert spread_requantization(r, 1, LANES) is r
    for library in ("fbgemm", "onednn", "qnnpack"):
        parts = {"weight_scales": scales, "output_q": QuantParams(1.0, 0), "relu": False, "channels": 4}
        given = requantization(
            library, "conv", input_q=QuantParams(1.0, 0), bias_f32=np.float32([2, 4, 6, 8]), **parts
        )  # fmt: skip
        spread = spread_requantization(given, 2, 3)
        name = "bias_i32" if library == "qnnpack" else "bias_f32"
        expected = np.zeros((2, 3))
        expected[:, :2] = getattr(given, name).reshape(2, 2)
        np.testing.assert_array_equal(getattr(spread, name), expected.reshape(-1))
    assert spread_requantization(r, 2, 3).multiplier_f32.tolist() == [1, 2, 0, 3, 4, 0]
