from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.kernels import pool
from quantvm.numerics import QuantParams

from .conftest import nhwc, quantized, run

WINDOWS = [  # kernel, stride, padding, ceil_mode
    ((3, 3), (2, 2), (1, 1), False),
    ((3, 3), (2, 2), (0, 0), True),
    ((2, 3), (1, 2), (1, 0), False),
    ((5, 5), (3, 3), (2, 2), True),
]
CHANNELS = [5, 71, 129]  # tails only, whole vectors and tails of several widths


def codes(shape):
    return np.random.default_rng(7).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_max_pool2d_equals_torch(kernel, stride, padding, ceil_mode, channels, target):
    x = codes((2, 11, 9, channels))
    shape = pool.PoolShape(11, 9, channels, kernel, stride, padding, (1, 1), ceil_mode)
    expected = nhwc(F.max_pool2d(quantized(x, 0.1, 9), kernel, stride, padding, 1, ceil_mode))
    np.testing.assert_array_equal(run(pool.max_pool2d(shape), target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("zero_point", [0, 101])
@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_avg_pool2d_equals_torch(kernel, stride, padding, ceil_mode, channels, zero_point, count_include_pad, target):
    x = codes((1, 11, 9, channels))
    q = QuantParams(0.125, zero_point)
    shape = pool.PoolShape(11, 9, channels, kernel, stride, padding, (1, 1), ceil_mode)
    expected = nhwc(
        F.avg_pool2d(quantized(x, 0.125, zero_point), kernel, stride, padding, ceil_mode, count_include_pad)
    )
    got = run(pool.avg_pool2d(shape, q, count_include_pad=count_include_pad), target, x, out_shape=expected.shape)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("zero_point", [0, 101, 255])
@pytest.mark.parametrize("out_size", [(1, 1), (3, 2), (7, 5)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_adaptive_avg_pool2d_equals_torch(channels, out_size, zero_point, target):
    x = codes((3, 8, 7, channels))
    expected = nhwc(F.adaptive_avg_pool2d(quantized(x, 0.125, zero_point), out_size))
    kernel = pool.adaptive_avg_pool2d((8, 7), channels, out_size, QuantParams(0.125, zero_point))
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("size", [(2, 2), (7, 7), (5, 13), (17, 16)])
@pytest.mark.parametrize("channels", [2, 6, 75])
def test_spatial_mean_equals_torch(channels, size, target):
    x = codes((4, *size, channels))
    expected = quantized(x, 0.0371, 101).mean([2, 3]).int_repr().numpy()
    kernel = pool.spatial_mean(size, channels, QuantParams(float(np.float32(0.0371)), 101))
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("zero_point", [0, 101])
def test_pools_of_contiguous_tensors_round_differently(zero_point, target):
    x = codes((2, 9, 8, 24))
    q = QuantParams(0.125, zero_point)
    qx = quantized(x, 0.125, zero_point, channels_last=False)
    window = pool.PoolShape(9, 8, 24, (3, 3), (2, 2), (1, 1))
    cases = [
        (F.avg_pool2d(qx, 3, 2, 1), pool.avg_pool2d(window, q, count_include_pad=True, channels_last=False)),
        (F.adaptive_avg_pool2d(qx, (3, 2)), pool.adaptive_avg_pool2d((9, 8), 24, (3, 2), q, channels_last=False)),
    ]
    for expected, kernel in cases:
        np.testing.assert_array_equal(run(kernel, target, x, out_shape=nhwc(expected).shape), nhwc(expected))
    mean = qx.mean([2, 3]).int_repr().numpy()
    kernel = pool.spatial_mean((9, 8), 24, q, channels_last=False)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=mean.shape), mean)


@pytest.mark.parametrize("channels", CHANNELS)
def test_qnnpack_pools_equal_torch(channels, target):
    torch.backends.quantized.engine = "qnnpack"
    x = codes((2, 9, 8, channels))
    scale = float(np.float32(0.0371))
    q, qx = QuantParams(scale, 101), quantized(x, scale, 101)
    window = pool.PoolShape(9, 8, channels, (3, 3), (2, 2), (1, 1))
    expected = nhwc(F.avg_pool2d(qx, 3, 2, 1))
    np.testing.assert_array_equal(
        run(pool.avg_pool2d_qnnpack(window, q), target, x, out_shape=expected.shape), expected
    )
    whole = pool.avg_pool2d_qnnpack(pool.PoolShape(9, 8, channels, (9, 8), (9, 8)), q)
    for expected in (nhwc(F.adaptive_avg_pool2d(qx, 1)), nhwc(qx.mean([2, 3], keepdim=True))):
        np.testing.assert_array_equal(run(whole, target, x, out_shape=expected.shape), expected)
