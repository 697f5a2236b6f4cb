"""Products summed in pairs that saturate at int16, as FBGEMM and oneDNN do on CPUs without VNNI."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.kernels import reference
from quantvm.kernels.builder import target_features
from quantvm.kernels.conv import conv2d
from quantvm.kernels.conv.conv2d import Conv2dShape
from quantvm.kernels.conv.dot import PAIR_PRODUCTS, select_pairs
from quantvm.numerics.dispatch import onednn_avx2_refuses
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.torch_engines import QuantParams
from quantvm.torch_compat import has_vnni
from quantvm.tvm_compat import native_target

from .conftest import run
from .test_conv import CASES, Case

RUNNABLE = [dot for dot in PAIR_PRODUCTS if dot.requires <= target_features(native_target())]
OUT = QuantParams(1.0, 101)
IN = QuantParams(1.0, 37)


def _requantization(weight, acc):
    scale = float(np.float32(120 / np.abs(acc).max()))
    return requantization(
        "fbgemm", "conv", input_q=IN, weight_scales=np.full(len(weight), scale), bias_f32=None, output_q=OUT,
        relu=False, channels=len(weight),
    )  # fmt: skip


def _operands(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(100, 256, (2, shape.in_height, shape.in_width, shape.in_channels)).astype(np.uint8)
    weight = rng.integers(-128, 128, (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups))
    return x, weight.astype(np.int8), rng.integers(-9, 10, shape.out_channels)


@pytest.mark.parametrize("dot", RUNNABLE, ids=lambda dot: dot.name)
@pytest.mark.parametrize("cross_taps", [False, True])
@pytest.mark.parametrize("name", ["odd channels", "first layer", "pointwise, odd channels", "grouped", "grouped, odd"])
def test_pairs_of_a_convolution(name, cross_taps, dot):
    *geometry, padding, dilation, groups = CASES[name]
    shape = Conv2dShape(*geometry, (*padding, *padding), dilation, groups)
    x, weight, zero_points = _operands(shape)
    for zw in (np.zeros_like(zero_points), zero_points):
        acc = reference.paired_accumulators_ref(shape, x, weight, zw, IN.zero_point, cross_taps=cross_taps)
        exact = reference.accumulators_ref(shape, x, weight - zw.reshape(-1, 1, 1, 1), IN.zero_point)
        assert (acc != exact).any(), "nothing saturates"
        r = _requantization(weight, acc)
        kernel = conv2d.conv2d(shape, weight, IN.zero_point, r, dot, weight_zero_points=zw, pairs_cross_taps=cross_taps)
        got = run(kernel, native_target(), x, out_shape=acc.shape)
        np.testing.assert_array_equal(got, requantize(acc, r))


@pytest.mark.parametrize("dot", RUNNABLE, ids=lambda dot: dot.name)
@pytest.mark.parametrize("in_features", [64, 50, 33])
def test_pairs_of_a_matrix_product(in_features, dot):
    shape = Conv2dShape(1, 1, in_features, 20)
    x, weight, zero_points = _operands(shape, 1)
    acc = reference.paired_accumulators_ref(shape, x, weight, zero_points, IN.zero_point, cross_taps=True)
    r = _requantization(weight, acc)
    kernel = conv2d.linear(in_features, weight[:, 0, 0], IN.zero_point, r, dot, weight_zero_points=zero_points)
    got = run(kernel, native_target(), x[:, 0, 0], out_shape=(2, 20))
    np.testing.assert_array_equal(got, requantize(acc[:, 0, 0], r))


@pytest.mark.parametrize("dot", RUNNABLE, ids=lambda dot: dot.name)
@pytest.mark.parametrize(("in_features", "cut"), [(257, 129), (262, 131)])
def test_pairs_of_a_matrix_product_that_is_cut(in_features, cut, dot):
    x, weight, zero_points = _operands(Conv2dShape(1, 1, in_features, 20), 1)
    x_cut, w_cut = np.insert(x, cut, IN.zero_point, axis=3), np.insert(weight, cut, 0, axis=3)
    shape = Conv2dShape(1, 1, in_features + 1, 20)
    acc = reference.paired_accumulators_ref(shape, x_cut, w_cut, zero_points, IN.zero_point, cross_taps=True)
    r = _requantization(weight, acc)
    kernel = conv2d.linear(in_features, weight[:, 0, 0], IN.zero_point, r, dot, weight_zero_points=zero_points, cut=cut)
    got = run(kernel, native_target(), x[:, 0, 0], out_shape=(2, 20))
    np.testing.assert_array_equal(got, requantize(acc[:, 0, 0], r))
    assert kernel.macs == in_features * 20


def test_the_portable_one_is_for_every_cpu():
    import tvm

    assert select_pairs(tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})).name == "portable_pairs"
    assert select_pairs(tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})).name == "avx2_pairs"
    assert select_pairs(tvm.target.Target({"kind": "llvm", "mcpu": "skylake-avx512"})).name == "avx512_pairs"
    assert select_pairs(native_target(), "portable").name == "portable_pairs"


@pytest.mark.skipif(has_vnni(), reason="with VNNI, PyTorch's sums are exact")
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
@pytest.mark.parametrize("name", CASES)
def test_pairs_are_pytorchs(name, engine, asymmetric):
    case = Case(
        CASES[name], engine=engine, asymmetric=asymmetric and engine != "onednn", full_range=True,
        largest_zero_point=128 if engine == "onednn" else 255,  # above, oneDNN's padding saturates not, and ours does
    )  # fmt: skip
    groups = case.shape.groups
    if engine == "onednn" and onednn_avx2_refuses(case.shape.in_channels, case.shape.out_channels, groups):
        pytest.skip("oneDNN's plain code, which is exact")
    acc = reference.paired_accumulators_ref(
        case.shape, case.x, case.weight, case.weight_zero_points, case.input_q.zero_point,
        cross_taps=engine != "onednn",
    )  # fmt: skip
    np.testing.assert_array_equal(requantize(acc, case.requantization), case.expected)
