"""Sums by vpmaddubsw that are exact, since the weight is cut in two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantvm.kernels import reference
from quantvm.kernels.builder import target_features
from quantvm.kernels.conv.conv2d import Conv2dShape, conv2d, linear
from quantvm.kernels.conv.dot import AVX2, AVX512, PORTABLE, SPLIT_PRODUCTS, VNNI512
from quantvm.kernels.conv.split_weights import split_pairs, split_product
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.torch_engines import QuantParams
from quantvm.tvm_compat import native_target

from .conftest import every_day, run
from .test_conv import CASES

RUNNABLE = [dot for dot in SPLIT_PRODUCTS.values() if dot.requires <= target_features(native_target())]
IN, OUT = QuantParams(1.0, 37), QuantParams(1.0, 101)


def _requantization(acc, channels):
    scale = float(np.float32(120 / np.abs(acc).max()))
    return requantization(
        "fbgemm", "conv", input_q=IN, weight_scales=np.full(channels, scale), bias_f32=None, output_q=OUT, relu=False,
        channels=channels,
    )  # fmt: skip


def _operands(shape, share, seed=0):
    """Returns x, and weights of the full range of which `share` are beyond 6 bits."""
    rng = np.random.default_rng(seed)
    x = rng.integers(150, 256, (2, shape.in_height, shape.in_width, shape.in_channels)).astype(np.uint8)
    size = (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups)
    small, large = rng.integers(-64, 64, size), rng.choice([-128, -127, -90, 100, 127], size)
    return x, np.where(rng.uniform(size=size) < share, large, small).astype(np.int8)


@given(arrays(np.int8, (2, 2, 1, 3, 64)), st.sampled_from(list(SPLIT_PRODUCTS.values())))
def test_two_weights_sum_to_the_weight_and_no_pair_of_either_saturates(packed, dot):
    rest, excess = split_pairs(packed, dot)
    whole, registers = rest.astype(int), 16 // dot.lanes
    for number in range(len(packed) * registers):
        vector, at = number // registers, number % registers * dot.lanes * 4
        for entry in range(excess.first[number], excess.first[number + 1]):
            whole[(vector, *excess.steps[entry])][at + 1 : at + dot.lanes * 4 : 2] += excess.weight[entry]
    np.testing.assert_array_equal(whole, packed)
    pairs = rest.reshape(-1, 2).astype(int)
    assert (255 * np.maximum(pairs, 0).sum(1) <= 32767).all()
    assert (255 * np.minimum(pairs, 0).sum(1) >= -32768).all()
    assert excess.first[-1] == len(excess.weight) == len(excess.steps)
    assert all(entry.any() for entry in excess.weight)


@given(st.integers(-128, 127), st.integers(-128, 127))
def test_nothing_is_cut_off_a_pair_that_fits(first, second):
    packed = np.zeros((1, 1, 1, 1, 64), np.int8)
    packed[..., 6:8] = first, second
    products = [255 * (max(first, 0) + max(second, 0)), 255 * (min(first, 0) + min(second, 0))]
    fits = products[0] <= 32767 and products[1] >= -32768
    assert (len(split_pairs(packed, SPLIT_PRODUCTS["avx2"])[1].weight) == 0) == fits


@pytest.mark.parametrize("dot", RUNNABLE, ids=lambda dot: dot.name)
@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("name", every_day(CASES, list(CASES)[::2]))
def test_a_convolution_is_exact(name, share, dot):
    *geometry, padding, dilation, groups = CASES[name]
    shape = Conv2dShape(*geometry, (*padding, *padding), dilation, groups)
    x, weight = _operands(shape, share)
    acc = reference.accumulators_ref(shape, x, weight, IN.zero_point)
    if share == 1.0 and shape.reduction > 1:
        zeros = np.zeros(shape.out_channels, np.int64)
        paired = reference.paired_accumulators_ref(shape, x, weight, zeros, IN.zero_point, cross_taps=True)
        assert (paired != acc).any(), "no pair would saturate"
    r = _requantization(acc, shape.out_channels)
    got = run(conv2d(shape, weight, IN.zero_point, r, dot), native_target(), x, out_shape=acc.shape)
    np.testing.assert_array_equal(got, requantize(acc, r))


@pytest.mark.parametrize("dot", RUNNABLE, ids=lambda dot: dot.name)
@pytest.mark.parametrize("in_features", [64, 50])
def test_a_matrix_product_is_exact(in_features, dot):
    shape = Conv2dShape(1, 1, in_features, 40)
    x, weight = _operands(shape, 0.1, 1)
    acc = reference.accumulators_ref(shape, x, weight, IN.zero_point)[:, 0, 0]
    r = _requantization(acc, 40)
    kernel = linear(in_features, weight[:, 0, 0], IN.zero_point, r, dot)
    np.testing.assert_array_equal(run(kernel, native_target(), x[:, 0, 0], out_shape=acc.shape), requantize(acc, r))


def test_weights_are_split_where_that_is_faster():
    shape = Conv2dShape(1, 1, 256, 64)
    few, many = _operands(shape, 0.0001)[1], _operands(shape, 1.0)[1]
    assert split_product(AVX2, few).name == "avx2_split"
    assert split_product(AVX512, few).name == "avx512_split"
    assert split_product(AVX2, many) is AVX2
    assert split_product(AVX2, few.astype(np.int16)) is AVX2
    assert split_product(VNNI512, few) is VNNI512
    assert split_product(PORTABLE, few) is PORTABLE


def test_convolutions_of_one_shape_share_code():
    import tvm_ffi

    shape = Conv2dShape(1, 1, 64, 40)
    functions = []
    for seed in (1, 2):
        _, weight = _operands(shape, 0.1, seed)
        kernel = linear(64, weight[:, 0, 0], IN.zero_point, _requantization(np.ones(1), 40), SPLIT_PRODUCTS["avx2"])
        functions.append(kernel.func)
    assert tvm_ffi.structural_equal(*functions, map_free_vars=True)
