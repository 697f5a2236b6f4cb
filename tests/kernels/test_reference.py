"""The NumPy oracles against PyTorch, and the kernels against the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvm.kernels import reference
from quantvm.kernels.pool import pool
from quantvm.numerics import dispatch
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import QuantParams
from quantvm.torch_compat import has_vnni
from quantvm.tvm_compat import native_target

from .conftest import nhwc, quantized, run
from .test_conv import CASES, DEPTHWISE, Case

Q = torch.ops.quantized
PARAMS = st.builds(
    QuantParams,
    scale=st.sampled_from([2.0**-5, 2.0**-3, float(np.float32(0.0213)), float(np.float32(0.37))]),
    zero_point=st.sampled_from([0, 1, 101, 128, 255]),
)
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 70))
SEEDS = st.integers(0, 2**16)


def codes(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("name", CASES)
def test_conv2d_ref(name):
    case = Case(CASES[name])
    got = reference.conv2d_u8i8acc32_ref(
        case.shape, case.x, case.weight, case.input_q.zero_point, case.requantization
    )  # fmt: skip
    np.testing.assert_array_equal(got, case.expected)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_ref(name, asymmetric):
    geometry = (*DEPTHWISE[name], DEPTHWISE[name][2])
    case = Case(geometry, asymmetric=asymmetric, full_range=True)
    _, _, c, oc, kernel, stride, padding, dilation, groups = geometry
    on_fast_path = dispatch.fbgemm_depthwise_saturates(c, oc, groups, kernel, stride, padding, dilation)
    saturates = on_fast_path or not has_vnni()
    arguments = (case.shape, case.x, case.weight, case.weight_zero_points, case.input_q.zero_point, case.requantization)
    got = reference.depthwise_conv2d_u8i8acc32_ref(*arguments, saturate_pairs=saturates)
    np.testing.assert_array_equal(got, case.expected)
    if saturates:
        exact = reference.depthwise_conv2d_u8i8acc32_ref(*arguments, saturate_pairs=False)
        assert (exact != case.expected).any(), "full-range activations must show the saturation"


@given(shape=SHAPES, a_q=PARAMS, b_q=PARAMS, out_q=PARAMS, relu=st.booleans(), seed=SEEDS)
@settings(max_examples=80, deadline=None)
def test_add_and_mul_ref(shape, a_q, b_q, out_q, relu, seed):
    a, b = codes(seed, shape), codes(seed + 1, shape)
    qa, qb = quantized(a, a_q.scale, a_q.zero_point), quantized(b, b_q.scale, b_q.zero_point)
    added = (Q.add_relu if relu else Q.add)(qa, qb, out_q.scale, out_q.zero_point)
    got = reference.add_u8_ref(a, b, a_q, b_q, out_q, relu=relu, pytorch=PyTorch("fbgemm"))
    np.testing.assert_array_equal(got, nhwc(added))
    multiplied = (Q.mul_relu if relu else Q.mul)(qa, qb, out_q.scale, out_q.zero_point)
    np.testing.assert_array_equal(reference.mul_u8_ref(a, b, a_q, b_q, out_q, relu=relu), nhwc(multiplied))


@given(shape=SHAPES, params=st.lists(PARAMS, min_size=1, max_size=4), out_q=PARAMS, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_concat_ref(shape, params, out_q, seed):
    xs = [codes(seed + i, (*shape[:3], shape[3] + i)) for i in range(len(params))]
    tensors = [quantized(x, q.scale, q.zero_point) for x, q in zip(xs, params, strict=True)]
    expected = Q.cat(tensors, 1, out_q.scale, out_q.zero_point)
    np.testing.assert_array_equal(reference.concat_nhwc_u8_ref(xs, params, out_q), nhwc(expected))


@given(channels=st.integers(1, 70), zero_point=st.sampled_from([0, 101, 255]), seed=SEEDS, k=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_pool_refs(channels, zero_point, seed, k):
    x = codes(seed, (2, 7, 6, channels))
    qx = quantized(x, 0.125, zero_point)
    shape = pool.PoolShape(7, 6, channels, (k, k), (2, 1), (k // 2,) * 4)
    expected = nhwc(F.max_pool2d(qx, k, (2, 1), k // 2))
    np.testing.assert_array_equal(reference.max_pool2d_u8_ref(shape, x), expected)
    expected = nhwc(F.adaptive_avg_pool2d(qx, (k, 2)))
    got = reference.adaptive_avg_pool2d_u8_ref(x, (k, 2), QuantParams(0.125, zero_point))
    np.testing.assert_array_equal(got, expected)


def test_a_kernel_agrees_with_its_oracle_where_pytorch_was_not_asked():
    from quantvm.kernels.conv.conv2d import conv2d
    from quantvm.kernels.conv.dot import select_dot

    case = Case(CASES["asymmetric kernel and padding"], seed=5)
    kernel = conv2d(case.shape, case.weight, 255, case.requantization, select_dot(native_target()))
    expected = reference.conv2d_u8i8acc32_ref(case.shape, case.x, case.weight, 255, case.requantization)
    np.testing.assert_array_equal(run(kernel, native_target(), case.x, out_shape=expected.shape), expected)
