from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.frontend.torch_cpu import torch_cpu
from quantvm.kernels import Kernel
from quantvm.kernels.builder import target_features
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.conv2d import Conv2dShape
from quantvm.kernels.conv.dot import DOT_PRODUCTS, PORTABLE, select_dot
from quantvm.kernels.conv.epilogue import NO_POST_OPS
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.numerics import dispatch
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.requantization import requantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.torch_compat import has_vnni
from quantvm.tvm_compat import native_target

from .conftest import compiled, every_day, nhwc, quantized, run

RUNNABLE = [dot.name for dot in DOT_PRODUCTS if dot.requires <= target_features(native_target())]
HAS_VNNI = has_vnni()
Q = torch.ops.quantized

CASES = {  # (H, W, IC, OC, kernel, stride, padding, dilation, groups)
    "odd channels": (7, 9, 5, 7, (3, 3), (2, 1), (1, 1), (1, 1), 1),
    "fewer channels than a lane": (6, 5, 3, 2, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "first layer": (15, 17, 3, 24, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "stride 2, no padding": (11, 10, 32, 40, (3, 3), (2, 2), (0, 0), (1, 1), 1),
    "dilation": (12, 12, 8, 16, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "asymmetric kernel and padding": (9, 8, 16, 33, (1, 7), (1, 1), (0, 3), (1, 1), 1),
    "pointwise": (8, 7, 24, 72, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise, prime width": (17, 17, 12, 20, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise, odd channels": (5, 5, 7, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise with stride": (6, 6, 16, 16, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "one pixel": (1, 1, 36, 20, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "grouped": (6, 7, 12, 20, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "grouped, odd": (6, 6, 10, 15, (3, 3), (2, 2), (1, 1), (1, 1), 5),
    "whole image": (4, 4, 16, 32, (4, 4), (1, 1), (0, 0), (1, 1), 1),
}
DEPTHWISE = {  # (H, W, C, OC, kernel, stride, padding, dilation)
    "3x3": (9, 10, 40, 40, (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3 stride 2": (9, 10, 72, 72, (3, 3), (2, 2), (1, 1), (1, 1)),
    "5x5": (7, 7, 24, 24, (5, 5), (1, 1), (2, 2), (1, 1)),
    "7x7": (8, 7, 8, 8, (7, 7), (2, 1), (3, 3), (1, 1)),
    "two outputs a channel": (6, 6, 16, 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    "odd channels, off the fast path": (7, 6, 13, 13, (3, 3), (1, 1), (1, 1), (1, 1)),
    "dilated, off the fast path": (9, 9, 16, 16, (3, 3), (1, 1), (2, 2), (2, 2)),
    "no padding, off the fast path": (8, 8, 48, 48, (3, 3), (1, 1), (0, 0), (1, 1)),
    "rows of whole vectors": (5, 8, 16, 16, (3, 3), (1, 1), (1, 1), (1, 1)),
    "rows of several periods and a rest": (4, 27, 40, 40, (3, 3), (1, 1), (1, 1), (1, 1)),
    "many channels": (4, 5, 184, 184, (5, 5), (1, 1), (2, 2), (1, 1)),
    "many channels, stride 2": (6, 7, 184, 184, (5, 5), (2, 2), (2, 2), (1, 1)),
    "narrow image, stride 2": (3, 3, 120, 120, (3, 3), (2, 2), (1, 1), (1, 1)),
    "rows shorter than a vector": (3, 2, 16, 16, (3, 3), (1, 1), (1, 1), (1, 1)),
}


class Case:
    """One random convolution, and PyTorch's answer.

    Integers have the full range; but by default not weights where PyTorch's sums would saturate, on CPUs without VNNI.
    """

    def __init__(
        self, geometry, *, engine="fbgemm", per_channel=True, bias=True, relu=True, asymmetric=False, seed=0,
        full_range=HAS_VNNI, largest_zero_point=255,
    ):  # fmt: skip
        h, w, ic, oc, kernel, stride, padding, dilation, groups = geometry
        rng = np.random.default_rng(seed)
        self.shape = Conv2dShape(h, w, ic, oc, kernel, stride, (*padding, *padding), dilation, groups)
        self.x = rng.integers(0, 256, (2, h, w, ic)).astype(np.uint8)
        low, high = (-128, 127) if full_range else (-64, 63)
        self.weight = rng.integers(low, high + 1, (oc, *kernel, ic // groups)).astype(np.int8)
        self.weight.reshape(-1)[:4] = [low, high, low, low]
        self.input_q = QuantParams(float(np.float32(0.0213)), int(rng.integers(0, largest_zero_point + 1)))
        scales = rng.uniform(0.002, 0.01, oc if per_channel else 1).astype(np.float32).astype(np.float64)
        spread = 0.0213 * scales.mean() * 80 * 74 * np.sqrt(self.shape.reduction)
        self.output_q = QuantParams(float(np.float32(spread / 60)), int(rng.integers(60, 200)))
        self.bias = (rng.standard_normal(oc) * spread * 0.3).astype(np.float32) if bias else None
        zeros = rng.integers(-5, 6, scales.size) if asymmetric else np.zeros(scales.size, np.int64)
        self.weight_zero_points = np.broadcast_to(zeros, (oc,))
        torch.backends.quantized.engine = engine
        w_oihw = torch.from_numpy(np.ascontiguousarray(self.weight.transpose(0, 3, 1, 2)))
        if per_channel:
            qw = torch._make_per_channel_quantized_tensor(w_oihw, torch.from_numpy(scales), torch.from_numpy(zeros), 0)
        else:
            qw = torch._make_per_tensor_quantized_tensor(w_oihw, float(scales[0]), int(zeros[0]))
        b = None if self.bias is None else torch.from_numpy(self.bias)
        packed = Q.conv2d_prepack(qw, b, list(stride), list(padding), list(dilation), groups)
        op = Q.conv2d_relu if relu else Q.conv2d
        qx = quantized(self.x, self.input_q.scale, self.input_q.zero_point)
        self.expected = nhwc(op(qx, packed, self.output_q.scale, self.output_q.zero_point))
        self.rule = dispatch.conv_library(PyTorch(engine, cpu=torch_cpu()), groups, symmetric_weights=not zeros.any())
        separate_up_to = 0 if self.rule == "onednn" and not HAS_VNNI else None
        self.requantization = requantization(
            self.rule, "conv", input_q=self.input_q, weight_scales=scales, bias_f32=self.bias,
            output_q=self.output_q, relu=relu, channels=oc, separate_up_to=separate_up_to,
        )  # fmt: skip

    def dense(self, dot, isa=PLAIN, post=NO_POST_OPS) -> Kernel:
        weight = self.weight
        if self.weight_zero_points.any():
            weight = weight.astype(np.int16) - self.weight_zero_points.reshape(-1, 1, 1, 1).astype(np.int16)
        return conv2d.conv2d(self.shape, weight, self.input_q.zero_point, self.requantization, dot, isa=isa, post=post)


@pytest.mark.parametrize("dot", every_day(RUNNABLE, (RUNNABLE[0], "avx2", "portable")))
@pytest.mark.parametrize("name", CASES)
def test_conv2d_equals_torch(name, dot):
    target = native_target()
    options_of = ({}, {"per_channel": False}, {"bias": False, "relu": False})
    # what they change is in the epilogue, which all vector code shares
    for seed, options in enumerate(options_of if dot in ("portable", RUNNABLE[0]) else options_of[:1]):
        case = Case(CASES[name], seed=seed, **options)
        isa = PLAIN if dot == "portable" else select_isa(target)
        kernel = case.dense(select_dot(target, dot), isa)
        np.testing.assert_array_equal(run(kernel, target, case.x, out_shape=case.expected.shape), case.expected)


@pytest.mark.parametrize("target", ["plain"], indirect=True)
@pytest.mark.parametrize("name", ["odd channels", "pointwise", "grouped"])
def test_conv2d_on_the_plainest_cpu(name, target):
    case = Case(CASES[name])
    got = run(case.dense(PORTABLE), target, case.x, out_shape=case.expected.shape)
    np.testing.assert_array_equal(got, case.expected)


@pytest.mark.parametrize("name", ["odd channels", "pointwise", "grouped"])
def test_asymmetric_weights_equal_torch(name):
    case = Case(CASES[name], asymmetric=True)
    got = run(case.dense(PORTABLE), native_target(), case.x, out_shape=case.expected.shape)
    np.testing.assert_array_equal(got, case.expected)


@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_other_engines_differ_in_the_epilogue_only(engine, per_channel):
    case = Case(CASES["stride 2, no padding"], engine=engine, per_channel=per_channel)
    target = native_target()
    for isa in (PLAIN, select_isa(target)):
        got = run(case.dense(select_dot(target), isa), target, case.x, out_shape=case.expected.shape)
        np.testing.assert_array_equal(got, case.expected)


def depthwise_cases():
    """Every layer for this CPU; for the plainest, whose code differs in its instructions only, one of each way."""
    plain_every_day = ("3x3 stride 2", "odd channels, off the fast path", "rows shorter than a vector")
    for name in DEPTHWISE:
        for asymmetric, target in ((False, "native"), (True, "native"), (True, "plain")):
            nightly = target == "plain" and name not in plain_every_day
            marks = pytest.mark.nightly if nightly else ()
            yield pytest.param(name, asymmetric, target, marks=marks, id=f"{name}-{asymmetric}-{target}")


@pytest.mark.parametrize(("name", "asymmetric", "target"), list(depthwise_cases()), indirect=["target"])
def test_depthwise_equals_torch(name, asymmetric, target):
    geometry = (*DEPTHWISE[name], DEPTHWISE[name][2])
    case = Case(geometry, asymmetric=asymmetric, full_range=True)
    _, _, c, oc, kernel, stride, padding, dilation, groups = geometry
    on_fast_path = dispatch.fbgemm_depthwise_saturates(c, oc, groups, kernel, stride, padding, dilation)
    assert on_fast_path == ("off the fast path" not in name)
    saturates = on_fast_path or not HAS_VNNI
    kernel_tir = depthwise.depthwise_conv2d(
        case.shape, case.weight, case.weight_zero_points, case.input_q.zero_point, case.requantization,
        saturate_pairs=saturates, isa=select_isa(target),
    )  # fmt: skip
    np.testing.assert_array_equal(run(kernel_tir, target, case.x, out_shape=case.expected.shape), case.expected)


@pytest.mark.parametrize("features", [(64, 40), (37, 1000), (512, 16), (6, 5)])
def test_linear_equals_torch(features):
    k, out = features
    rng = np.random.default_rng(k)
    largest = 128 if HAS_VNNI else 64
    weight = rng.integers(-largest, largest, (out, k)).astype(np.int8)
    scales = rng.uniform(0.002, 0.01, out).astype(np.float32).astype(np.float64)
    bias = rng.standard_normal(out).astype(np.float32)
    input_q, output_q = QuantParams(float(np.float32(0.03)), 44), QuantParams(float(np.float32(0.7)), 131)
    zeros = torch.zeros(out, dtype=torch.int64)
    qw = torch._make_per_channel_quantized_tensor(torch.from_numpy(weight), torch.from_numpy(scales), zeros, 0)
    packed = Q.linear_prepack(qw, torch.from_numpy(bias))
    r = requantization(
        "fbgemm",
        "linear",
        input_q=input_q,
        weight_scales=scales,
        bias_f32=bias,
        output_q=output_q,
        relu=False,
        channels=out,
    )
    target = native_target()
    for dot, isa in ((RUNNABLE[0], PLAIN), *((dot, select_isa(target)) for dot in RUNNABLE), ("portable", PLAIN)):
        kernel = compiled(conv2d.linear(k, weight, 44, r, select_dot(target, dot), isa=isa), target)
        for batch in (1, 2, 5, 13):
            x = rng.integers(0, 256, (batch, k)).astype(np.uint8)
            expected = Q.linear(quantized(x, input_q.scale, 44), packed, output_q.scale, 131).int_repr().numpy()
            np.testing.assert_array_equal(kernel(x, out_shape=expected.shape), expected)


def test_a_conversion_that_overflows_int32_ends_at_zero_as_in_fbgemm():
    case = Case(CASES["pointwise"])
    tiny = QuantParams(float(np.float32(1e-9)), 100)
    geometry = CASES["pointwise"]
    zeros = torch.zeros(geometry[3], dtype=torch.int64)
    w_oihw = torch.from_numpy(np.ascontiguousarray(case.weight.transpose(0, 3, 1, 2)))
    scales = np.full(geometry[3], 0.01)
    qw = torch._make_per_channel_quantized_tensor(w_oihw, torch.from_numpy(scales), zeros, 0)
    packed = Q.conv2d_prepack(qw, None, [1, 1], [0, 0], [1, 1], 1)
    expected = nhwc(Q.conv2d(quantized(case.x, case.input_q.scale, case.input_q.zero_point), packed, tiny.scale, 100))
    assert {0, 255} <= set(np.unique(expected))
    r = requantization(
        "fbgemm", "conv", input_q=case.input_q, weight_scales=scales, bias_f32=None, output_q=tiny, relu=False,
        channels=geometry[3],
    )  # fmt: skip
    target = native_target()
    for isa in (PLAIN, select_isa(target)):
        kernel = conv2d.conv2d(case.shape, case.weight, case.input_q.zero_point, r, select_dot(target), isa=isa)
        np.testing.assert_array_equal(run(kernel, target, case.x, out_shape=expected.shape), expected)


@pytest.mark.parametrize(
    ("out_height", "threads", "rows"),
    [(17, 1, 8), (17, 2, 9), (33, 2, 9), (65, 2, 11), (14, 2, 7), (3, 2, 2), (1, 4, 1)],
)
def test_rows_of_a_depthwise_convolution_are_cut_evenly_over_threads(out_height, threads, rows):
    assert depthwise._task_rows(out_height, threads) == rows
