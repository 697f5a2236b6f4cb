"""Kernels of numerics=integer against their NumPy formulas, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantvm.choices import ROUNDINGS
from quantvm.kernels import integer_only, reference
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import missing_features, select_dot
from quantvm.kernels.elementwise import concat
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.pool.pool import PoolShape
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics.requantization import requantize
from quantvm.numerics.torch_engines import QuantParams
from quantvm.tvm_compat import native_target

from .conftest import every_day, run

A, B = QuantParams(0.05, 120), QuantParams(0.02, 3)
OUT = QuantParams(0.04, 77)
RUNNABLE = [dot.name for dot, missing in missing_features(native_target()) if not missing]


def codes(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("params", [(A, B, OUT), (A, A, A), (QuantParams(0.5, 0), B, QuantParams(0.25, 9))])
def test_add(params, relu, rounding, target):
    a_q, b_q, out_q = params
    a, b = codes(2, 3, 5, 37), codes(2, 3, 5, 37)[::-1].copy()
    kernel = integer_only.integer_add((3, 5, 37), a_q, b_q, out_q, relu=relu, rounding=rounding)
    expected = integer_numerics.add(a, b, (a_q, b_q), out_q, relu=relu, rounding=rounding)
    np.testing.assert_array_equal(run(kernel, target, a, b, out_shape=a.shape), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("broadcast", [False, True])
def test_multiply(broadcast, rounding, target):
    a, b = codes(2, 3, 5, 37), codes(2, 1, 1, 37) if broadcast else codes(2, 3, 5, 37)[::-1].copy()
    kernel = integer_only.integer_multiply(
        (3, 5, 37), A, B, OUT, relu=broadcast, broadcast=broadcast, rounding=rounding
    )
    expected = integer_numerics.multiply(a, b, (A, B), OUT, relu=broadcast, rounding=rounding)
    np.testing.assert_array_equal(run(kernel, target, a, b, out_shape=a.shape), expected)


def test_code_of_many_channels_is_not_written_out():
    many = integer_only.integer_quantize((240, 5, 5), OUT, to_nhwc=True).func.script()
    assert len(many) < 10_000


@pytest.mark.parametrize("channels", [3, 11])
@pytest.mark.parametrize("to_nhwc", [False, True])
def test_quantize(to_nhwc, channels, target):
    rng = np.random.default_rng(1)
    x = (rng.integers(-600, 600, (2, channels, 5, 21)) * np.float32(0.5) * OUT.scale_f32).astype(np.float32)
    x.reshape(-1)[:3] = [1e30, -1e30, 0]
    expected = integer_numerics.quantize(x, OUT)
    expected = expected.transpose(0, 2, 3, 1) if to_nhwc else expected
    kernel = integer_only.integer_quantize((channels, 5, 21), OUT, to_nhwc=to_nhwc)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("target", ["native", "plain"], indirect=True)
def test_quantize_after_an_affine(target):
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 21)).astype(np.float32)
    factors, terms = np.array([0.4, 1.5, 2.0], np.float32), np.array([0.1, -0.2, 0.0], np.float32)
    real = (x * factors[:, None, None]).astype(np.float32) + terms[:, None, None]
    expected = integer_numerics.quantize(real, OUT).transpose(0, 2, 3, 1)
    kernel = integer_only.integer_quantize((3, 5, 21), OUT, to_nhwc=True, affine=(factors, terms))
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_concat(rounding, target):
    params, channels = [A, OUT, B], (70, 33, 5)
    xs = [codes(2, 3, 4, c) for c in channels]
    tables = [integer_numerics.requantize_table(q, OUT, rounding) for q in params]
    expected = np.concatenate([table[x] for x, table in zip(xs, tables, strict=True)], -1)
    expected[..., 70:103] = xs[1]
    for isa in {PLAIN, select_isa(target)}:
        kernel = concat.concat_nhwc((3, 4), channels, params, OUT, isa, exact_tables=tables)
        np.testing.assert_array_equal(run(kernel, target, *xs, out_shape=expected.shape), expected)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        PoolShape(9, 8, 21, (3, 3), (1, 1), (1, 1, 1, 1)),
        PoolShape(11, 9, 21, (2, 3), (2, 2), (0, 1, 0, 1)),
        PoolShape(11, 9, 21, (5, 5), (3, 3), (2, 2, 2, 2), ceil_mode=True),
    ],
)
def test_avg_pool2d(shape, include, target):
    x = codes(2, shape.in_height, shape.in_width, shape.channels)
    expected = _windows(shape, x, include)
    kernel = integer_only.integer_avg_pool2d(shape, A, count_include_pad=include)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


def _windows(shape, x, include):
    (top, left, bottom, right), (height, width) = shape.padding, (shape.in_height, shape.in_width)
    out = np.empty((x.shape[0], shape.out_height, shape.out_width, shape.channels), np.uint8)
    for i in range(shape.out_height):
        for j in range(shape.out_width):
            rows = [i * shape.stride[0] - top + k for k in range(shape.kernel[0])]
            columns = [j * shape.stride[1] - left + k for k in range(shape.kernel[1])]
            rows, columns = [r for r in rows if r < height + bottom], [c for c in columns if c < width + right]
            inside = [r for r in rows if 0 <= r < height], [c for c in columns if 0 <= c < width]
            n_inside = len(inside[0]) * len(inside[1])
            size = len(rows) * len(columns) if include else n_inside
            total = x[:, inside[0]][:, :, inside[1]].astype(int).sum((1, 2)) + (size - n_inside) * A.zero_point
            out[:, i, j] = integer_numerics.average(total, size)
    return out


@pytest.mark.parametrize("out_size", [(1, 1), (3, 2)])
def test_adaptive_avg_pool2d(out_size, target):
    x = codes(2, 8, 7, 37)
    expected = np.empty((2, *out_size, 37), np.uint8)
    for i in range(out_size[0]):
        for j in range(out_size[1]):
            rows = slice(i * 8 // out_size[0], -(-(i + 1) * 8 // out_size[0]))
            columns = slice(j * 7 // out_size[1], -(-(j + 1) * 7 // out_size[1]))
            window = x[:, rows, columns].astype(int)
            expected[:, i, j] = window.sum((1, 2)) // (window.shape[1] * window.shape[2])
    kernel = integer_only.integer_adaptive_avg_pool2d((8, 7), 37, out_size, A)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("target", ["native", "plain"], indirect=True)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_mean(rounding, target):
    from quantvm.numerics.fixed_point import fixed_point, multiply

    x = codes(2, 4, 3, 37)
    centred = x.astype(int).sum((1, 2)) - 12 * A.zero_point
    expected = multiply(centred, fixed_point(1 / 12, rounding)) + A.zero_point
    kernel = integer_only.integer_spatial_mean((4, 3), 37, A, rounding=rounding)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


def requantization(channels, rounding, relu=False, per_tensor=False):
    rng = np.random.default_rng(3)
    scales = np.array([0.004]) if per_tensor else rng.uniform(0.001, 0.006, channels)
    return integer_numerics.requantization(
        input_q=A, weight_scales=scales, bias_f32=rng.normal(0, 1, channels).astype(np.float32), output_q=OUT,
        relu=relu, channels=channels, rounding=rounding,
    )  # fmt: skip


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dot", every_day(RUNNABLE, (RUNNABLE[0], "portable")))
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups, dot, rounding):
    target = native_target()
    shape = Conv2dShape(7, 6, 24, 40, kernel=(3, 3), padding=(1, 1, 1, 1), groups=groups)
    weight = np.random.default_rng(4).integers(-127, 128, (40, 3, 3, 24 // groups)).astype(np.int8)
    r = requantization(40, rounding, relu=groups == 2)
    x = codes(2, 7, 6, 24)
    expected = reference.conv2d_u8i8acc32_ref(shape, x, weight, A.zero_point, r)
    isa = PLAIN if dot == "portable" else select_isa(target)
    kernel = conv2d.conv2d(shape, weight, A.zero_point, r, select_dot(target, dot), isa=isa)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_depthwise_convolution(rounding):
    target = native_target()
    shape = Conv2dShape(9, 8, 48, 48, kernel=(3, 3), padding=(1, 1, 1, 1), groups=48)
    weight = np.random.default_rng(5).integers(-128, 128, (48, 3, 3, 1)).astype(np.int8)
    r, x = requantization(48, rounding), codes(2, 9, 8, 48)
    zeros = np.zeros(48, np.int64)
    expected = reference.depthwise_conv2d_u8i8acc32_ref(shape, x, weight, zeros, A.zero_point, r, saturate_pairs=False)
    for isa in {PLAIN, select_isa(target)}:
        kernel = depthwise.depthwise_conv2d(shape, weight, zeros, A.zero_point, r, saturate_pairs=False, isa=isa)
        np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_linear(per_tensor, target):
    weight = np.random.default_rng(6).integers(-127, 128, (37, 50)).astype(np.int8)
    r, x = requantization(37, "upward", per_tensor=per_tensor), codes(3, 50)
    acc = (x.astype(np.int64) - A.zero_point) @ weight.astype(np.int64).T
    expected = requantize(acc, r)
    kernel = conv2d.linear(50, weight, A.zero_point, r, select_dot(target), isa=select_isa(target))
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=expected.shape), expected)


def test_factors_of_one_and_more_and_of_nothing():
    target = native_target()
    weight = np.ones((32, 16), np.int8)
    r = requantization(32, "upward")
    factors = np.linspace(0.0, 3.0, 32)
    r = replace(r, factor=integer_numerics.fixed_point.fixed_point(factors), bias_i32=None)
    x = codes(5, 16)
    acc = np.repeat((x.astype(np.int64) - A.zero_point).sum(1, keepdims=True), 32, 1)
    kernel = conv2d.linear(16, weight, A.zero_point, r, select_dot(target), isa=select_isa(target))
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=(5, 32)), requantize(acc, r))
