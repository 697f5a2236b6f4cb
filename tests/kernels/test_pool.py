from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.kernels import reference
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.pool import pool
from quantvm.kernels.pool.avg_pool_words import avg_pool2d_words, word_factor
from quantvm.numerics.torch_engines import QuantParams
from quantvm.torch_compat import quantization_engine
from quantvm.tvm_compat import native_target

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
    shape = pool.PoolShape(11, 9, channels, kernel, stride, (*padding, *padding), (1, 1), ceil_mode)
    expected = nhwc(F.max_pool2d(quantized(x, 0.1, 9), kernel, stride, padding, 1, ceil_mode))
    np.testing.assert_array_equal(run(pool.max_pool2d(shape), target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((2, 2), (1, 1), (0, 1)), ((3, 3), (2, 1), (1, 1))])
def test_max_pool2d_of_qnnpack_reads_the_border_in_place_of_padding(kernel, stride, padding, dilation, target):
    x = codes((2, 11, 9, 5))
    shape = pool.PoolShape(11, 9, 5, kernel, stride, (*padding, *padding), (dilation, dilation))
    with quantization_engine("qnnpack"):
        expected = nhwc(F.max_pool2d(quantized(x, 0.1, 9), kernel, stride, padding, dilation))
    got = run(pool.max_pool2d(shape, repeats_border=True), target, x, out_shape=expected.shape)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(reference.max_pool2d_u8_ref(shape, x, repeats_border=True), expected)
    without = nhwc(F.max_pool2d(quantized(x, 0.1, 9), kernel, stride, padding, dilation))
    assert np.array_equal(without, expected) == (dilation == 1)


@pytest.mark.parametrize(("count_include_pad", "zero_point"), [(False, 101), (True, 0)])
@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_avg_pool2d_equals_torch(kernel, stride, padding, ceil_mode, channels, zero_point, count_include_pad, target):
    x = codes((1, 11, 9, channels))
    q = QuantParams(0.125, zero_point)
    shape = pool.PoolShape(11, 9, channels, kernel, stride, (*padding, *padding), (1, 1), ceil_mode)
    expected = nhwc(
        F.avg_pool2d(quantized(x, 0.125, zero_point), kernel, stride, padding, ceil_mode, count_include_pad)
    )
    for isa in {PLAIN, select_isa(target)}:
        kernel = pool.avg_pool2d(shape, q, count_include_pad=count_include_pad, isa=isa)
        np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


WORDS = [  # in_size, channels, kernel, stride, padding, count_include_pad
    ((9, 8), 16, (3, 3), (1, 1), (1, 1), True),
    ((9, 8), 240, (3, 3), (1, 1), (1, 1), True),
    ((2, 2), 96, (3, 3), (1, 1), (1, 1), True),
    ((11, 9), 64, (3, 3), (2, 2), (0, 0), False),
    ((11, 12), 48, (5, 1), (2, 3), (2, 0), True),
    ((12, 11), 32, (1, 7), (1, 1), (0, 2), True),
]


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
@pytest.mark.parametrize(("size", "channels", "kernel", "stride", "padding", "include"), WORDS)
def test_avg_pool2d_in_words_equals_torch(size, channels, kernel, stride, padding, include, zero_point):
    target = native_target()
    q = QuantParams(0.125, zero_point)
    shape = pool.PoolShape(*size, channels, kernel, stride, (*padding, *padding))
    factor = word_factor(shape, q, count_include_pad=include)
    assert factor is not None
    if not select_isa(target).packs:
        pytest.skip("this CPU has no 512-bit packs")
    x = np.concatenate([codes((2, *size, channels)), np.full((1, *size, channels), 255, np.uint8)])
    expected = nhwc(F.avg_pool2d(quantized(x, 0.125, zero_point), kernel, stride, padding, False, include))
    got = run(avg_pool2d_words(shape, zero_point, factor), target, x, out_shape=expected.shape)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("changes", "dtype", "include"),
    [
        ({"kernel": (2, 2)}, "uint8", True),  # averages half-way between integers
        ({"kernel": (13, 13), "padding": (6, 6, 6, 6)}, "uint8", True),  # sums beyond int16
        ({"kernel": (5, 5), "padding": (2, 2, 2, 2)}, "uint8", True),  # no factor is exact for every sum
        ({}, "uint8", False),  # windows at the border have fewer elements
        ({"channels": 24}, "uint8", True),
        ({}, "int8", True),
        ({"in_height": 14, "stride": (2, 2), "padding": (0, 0, 0, 0), "ceil_mode": True}, "uint8", False),
    ],
)
def test_windows_that_need_the_float_formula(changes, dtype, include):
    shape = pool.PoolShape(15, 15, 64, (3, 3), (1, 1), (1, 1, 1, 1))
    assert word_factor(shape, QuantParams(0.1, 3), count_include_pad=True) is not None
    assert word_factor(replace(shape, **changes), QuantParams(0.1, 3, dtype), count_include_pad=include) is None


@pytest.mark.parametrize(("out_size", "zero_point"), [((1, 1), 0), ((3, 2), 101), ((7, 5), 255)])
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


@pytest.mark.parametrize("target", ["native", "plain"], indirect=True)
@pytest.mark.parametrize("zero_point", [0, 101])
def test_pools_of_contiguous_tensors_round_differently(zero_point, target):
    x = codes((2, 9, 8, 24))
    q = QuantParams(0.125, zero_point)
    qx = quantized(x, 0.125, zero_point, channels_last=False)
    window = pool.PoolShape(9, 8, 24, (3, 3), (2, 2), (1, 1, 1, 1))
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
    window = pool.PoolShape(9, 8, channels, (3, 3), (2, 2), (1, 1, 1, 1))
    expected = nhwc(F.avg_pool2d(qx, 3, 2, 1))
    np.testing.assert_array_equal(
        run(pool.avg_pool2d_qnnpack(window, q), target, x, out_shape=expected.shape), expected
    )
    whole = pool.avg_pool2d_qnnpack(pool.PoolShape(9, 8, channels, (9, 8), (9, 8)), q)
    for expected in (nhwc(F.adaptive_avg_pool2d(qx, 1)), nhwc(qx.mean([2, 3], keepdim=True))):
        np.testing.assert_array_equal(run(whole, target, x, out_shape=expected.shape), expected)
