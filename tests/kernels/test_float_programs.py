"""Numerics qdq: kernels equal `qdq_numerics`, bit for bit, and that equals PyTorch's decomposed operators."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
import tvm

from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import select_dot
from quantvm.kernels.float import region_kernel
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.pool import float_pool
from quantvm.kernels.pool.pool import PoolShape
from quantvm.kernels.reference import accumulators_ref
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics import qdq as qdq_numerics
from quantvm.numerics.qdq import (
    AccumulatorLeaf,
    ChannelLeaf,
    FloatProgram,
    Quantization,
    ScalarLeaf,
    Step,
    TensorLeaf,
    evaluate,
)
from quantvm.numerics.torch_engines import QuantParams
from quantvm.tvm_compat import native_target

from .conftest import run

X_Q = QuantParams(float(np.float32(0.0213)), 121)
OTHER_Q = QuantParams(float(np.float32(0.27)), 131)
OUT = Quantization.full_range(QuantParams(float(np.float32(0.31)), 117), divides=False)
INNER = Quantization.full_range(QuantParams(float(np.float32(0.4)), 90), divides=False)


def _isas():
    isa = select_isa(native_target())
    return [PLAIN, isa] if isa != PLAIN else [PLAIN]


def _acc(channels, seed=0):
    rng = np.random.default_rng(seed)
    multiplier = (X_Q.scale_f32 * rng.uniform(0.002, 0.01, channels).astype(np.float32)).astype(np.float32)
    bias = (rng.standard_normal(channels) * 5).astype(np.float32)
    return AccumulatorLeaf(multiplier), ChannelLeaf(bias)


def _programs(channels, *, tensors):
    """Yields programs of a contraction; those with a second tensor only if asked for."""
    acc, bias = _acc(channels)
    yield "bias, quantized", FloatProgram((acc, bias), (Step("add", (0, 1)),), OUT.limited(117, 255))
    yield "no bias, divided", FloatProgram((acc,), (), replace(OUT, divides=True))
    yield "floats", FloatProgram((acc, bias), (Step("add", (0, 1)), Step("relu", (2,))), None)
    steps = (Step("add", (0, 1)), Step("requantize", (2,), (), INNER), Step("clip", (3,), (-0.5, 0.75)))
    yield "floats of steps", FloatProgram((acc, bias), steps, None)
    gate = (Step("add", (0, 1)), Step("add", (4, 2)), Step("clip", (5,), (0.0, 6.0)), Step("divide", (6, 3)))
    leaves = (acc, bias, ScalarLeaf(3.0), ScalarLeaf(6.0))
    yield "hardswish", FloatProgram(leaves, (*gate, Step("multiply", (4, 7))), OUT)
    yield "silu", FloatProgram((acc, bias), (Step("add", (0, 1)), Step("silu", (2,))), OUT)
    yield "leaky", FloatProgram((acc,), (Step("leaky_relu", (0,), (0.1,)),), OUT)
    if tensors:
        leaves = (acc, bias, TensorLeaf(OTHER_Q))
        yield "residual", FloatProgram(leaves, (Step("add", (0, 1)), Step("add", (3, 2))), OUT.limited(117, 255))
        steps = (Step("add", (0, 1)), Step("requantize", (3,), (), INNER), Step("add", (4, 2)))
        yield "quantized in between", FloatProgram(leaves, steps, OUT)
        leaves = (acc, bias, TensorLeaf(None))
        yield "residual of floats", FloatProgram(leaves, (Step("add", (0, 1)), Step("subtract", (3, 2))), None)


CONVOLUTIONS = {
    "dense": Conv2dShape(7, 9, 8, 48, (3, 3), (2, 1), (1, 1, 1, 1)),
    "odd channels": Conv2dShape(6, 5, 5, 39, (3, 3), (1, 1), (1, 1, 1, 1)),
    "pointwise": Conv2dShape(5, 7, 12, 80),
    "one pixel": Conv2dShape(1, 1, 36, 32),
    "grouped": Conv2dShape(6, 6, 12, 20, (3, 3), (1, 1), (1, 1, 1, 1), groups=2),
}


def _compare(kernel, expected, *inputs):
    got = run(kernel, native_target(), *inputs, out_shape=expected.shape, out_dtype=str(expected.dtype))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))  # of zeros, too


def _other_tensors(program, shape):
    rng = np.random.default_rng(7)
    return [
        rng.integers(0, 256, shape).astype(np.uint8)
        if leaf.q is not None
        else (rng.standard_normal(shape) * 9).astype(np.float32)
        for leaf in program.tensors
    ]


@pytest.mark.parametrize("isa", _isas(), ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_ends_in_a_program(name, isa):
    shape = CONVOLUTIONS[name]
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (2, shape.in_height, shape.in_width, shape.in_channels)).astype(np.uint8)
    w = rng.integers(-128, 128, (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups)).astype(np.int8)
    acc = accumulators_ref(shape, x, w, X_Q.zero_point)
    dot = select_dot(native_target(), "portable" if isa == PLAIN else None)
    takes_tensors = shape.out_channels % 16 == 0 and shape.groups == 1
    for title, program in _programs(shape.out_channels, tensors=takes_tensors):
        others = _other_tensors(program, acc.shape)
        kernel = conv2d.conv2d(shape, w, X_Q.zero_point, program, dot, isa=isa)
        expected = evaluate(program, others, acc)
        if title == "silu":
            _compare_up_to_exp(kernel, expected, x, *others)
        else:
            _compare(kernel, expected, x, *others)


def _generate_limited(mcpu):
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    shape = Conv2dShape(4, 4, 12, 8)
    w = np.random.default_rng(0).integers(-128, 128, (8, 1, 1, 12)).astype(np.int8)
    acc, bias = _acc(8)
    program = FloatProgram((acc, bias), (Step("add", (0, 1)),), OUT.limited(0, 200))
    kernel = conv2d.conv2d(shape, w, X_Q.zero_point, program, select_dot(target), isa=select_isa(target))
    assert "vpminub" in tvm.compile(tvm.IRModule({"main": kernel.func}), target=target).mod.inspect_source("asm")


def test_limits_of_few_channels_are_compiled_for_cpus_with_vbmi():
    """Limits behind the permutation of bytes sent LLVM's combination of shuffles round in a circle for ever."""
    process = multiprocessing.get_context("spawn").Process(target=_generate_limited, args=("icelake-server",))
    process.start()
    process.join(timeout=120)
    process.kill()
    process.join()
    assert process.exitcode == 0


def _compare_up_to_exp(kernel, expected, *inputs):
    got = run(kernel, native_target(), *inputs, out_shape=expected.shape, out_dtype=str(expected.dtype))
    different = got.astype(int) != expected.astype(int)
    assert different.mean() < 1e-3
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("isa", _isas(), ids=str)
@pytest.mark.parametrize("channels", [13, 40, 96])
def test_depthwise_ends_in_a_program(channels, isa):
    shape = Conv2dShape(6, 7, channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), groups=channels)
    strided = replace(shape, stride=(2, 2))
    rng = np.random.default_rng(4)
    x = rng.integers(0, 256, (2, 6, 7, channels)).astype(np.uint8)
    w = rng.integers(-128, 128, (channels, 3, 3, 1)).astype(np.int8)
    for geometry in (shape, strided):
        acc = accumulators_ref(geometry, x, w, X_Q.zero_point)
        programs = list(_programs(channels, tensors=False))
        for title, program in programs if geometry is shape else programs[:2]:
            kernel = depthwise.depthwise_conv2d(
                geometry, w, np.zeros(channels, int), X_Q.zero_point, program, saturate_pairs=False, isa=isa
            )
            compare = _compare_up_to_exp if title == "silu" else _compare
            compare(kernel, evaluate(program, [], acc), x)


REGIONS = {
    "add": FloatProgram((TensorLeaf(X_Q), TensorLeaf(OTHER_Q)), (Step("add", (0, 1)),), OUT),
    "table": FloatProgram(
        (TensorLeaf(X_Q), ScalarLeaf(3.0)), (Step("add", (0, 1)), Step("clip", (2,), (0.0, 6.0))), OUT
    ),
    "gate": FloatProgram((TensorLeaf(X_Q), TensorLeaf(OTHER_Q, gate=True)), (Step("multiply", (0, 1)),), OUT),
    "gate of floats": FloatProgram((TensorLeaf(None), TensorLeaf(None, gate=True)), (Step("multiply", (0, 1)),), None),
    "channels": FloatProgram(
        (TensorLeaf(X_Q), ChannelLeaf(np.linspace(-3, 4, 24, dtype=np.float32))), (Step("multiply", (0, 1)),), OUT
    ),
    "dequantize": FloatProgram((TensorLeaf(X_Q),), (), None),
    "quantize": FloatProgram((TensorLeaf(None),), (), OUT),
    "divided": FloatProgram((TensorLeaf(None),), (), replace(OUT, divides=True)),
    "limits": FloatProgram((TensorLeaf(None), ScalarLeaf(2.0)), (Step("maximum", (0, 1)),), OUT.limited(3, 200)),
}


@pytest.mark.parametrize("isa", _isas(), ids=str)
@pytest.mark.parametrize("name", REGIONS)
def test_region_equals_its_program(name, isa):
    program, item = REGIONS[name], (5, 3, 24)
    rng = np.random.default_rng(5)
    tensors = []
    for leaf in program.tensors:
        shape = (2, 1, 1, 24) if leaf.gate else (2, *item)
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        # half of the floats are exact ties of the output's steps
        ties = (rng.integers(-300, 300, shape) / 2 * OUT.q.scale_f32).astype(np.float32)
        tensors.append(codes if leaf.q is not None else ties)
    _compare(region_kernel.region_kernel(item, program, isa), evaluate(program, tensors), *tensors)


@pytest.mark.parametrize("output", [None, OUT], ids=["floats", "quantized"])
@pytest.mark.parametrize("q", [None, X_Q], ids=["of floats", "of integers"])
def test_average_pools(q, output):
    rng = np.random.default_rng(6)
    shape = PoolShape(9, 8, 24, (3, 3), (2, 2), (1, 1, 1, 1))
    x = rng.integers(0, 256, (2, 9, 8, 24)).astype(np.uint8)
    real_f32 = (x.astype(np.float32) - 121) * np.float32(0.0213)
    given = x if q is not None else real_f32
    for include in (True, False):
        kernel = float_pool.float_avg_pool2d(shape, q, output, count_include_pad=include)
        expected = torch.nn.functional.avg_pool2d(
            torch.from_numpy(real_f32.astype(np.float64)).permute(0, 3, 1, 2), 3, 2, 1, count_include_pad=include
        )
        _compare_average(kernel, expected, given, output)
    kernel = float_pool.float_adaptive_avg_pool2d((9, 8), 24, (2, 3), q, output)
    expected = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(real_f32.astype(np.float64)).permute(0, 3, 1, 2), (2, 3)
    )
    _compare_average(kernel, expected, given, output)


def _compare_average(kernel, expected_f64, given, output):
    expected = expected_f64.permute(0, 2, 3, 1).numpy()
    dtype = "float32" if output is None else "uint8"
    got = run(kernel, native_target(), given, out_shape=expected.shape, out_dtype=dtype)
    if output is None:
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
        return
    steps = expected / output.q.scale
    away_from_ties = np.abs(steps - np.floor(steps) - 0.5) > 1e-4
    exact = np.clip(np.rint(steps) + output.q.zero_point, output.low, output.high)
    np.testing.assert_array_equal(got[away_from_ties], exact[away_from_ties])
    assert away_from_ties.mean() > 0.5


def test_quantize_equals_decomposed_operators():
    rng = np.random.default_rng(8)
    scale = 0.0371
    ties = (rng.integers(-600, 600, 4000) / 2 * scale).astype(np.float32)
    x = np.concatenate([ties, rng.standard_normal(4000).astype(np.float32) * 9, [1e30, -1e30]]).astype(np.float32)
    for dtype, low, high, zero in ((torch.uint8, 0, 255, 91), (torch.int8, -127, 127, -3), (torch.uint8, 0, 127, 64)):
        q = QuantParams(scale, zero, str(dtype).removeprefix("torch."))
        expected = torch.ops.quantized_decomposed.quantize_per_tensor(
            torch.from_numpy(x), scale, zero, low, high, dtype
        )
        mine = qdq_numerics.quantize(x, Quantization(q, low, high))
        np.testing.assert_array_equal(mine, expected.numpy())
        back = torch.ops.quantized_decomposed.dequantize_per_tensor(expected, scale, zero, low, high, dtype)
        program = FloatProgram((TensorLeaf(q),), (), None)
        np.testing.assert_array_equal(evaluate(program, [expected.numpy()]), back.numpy())


@pytest.mark.parametrize("isa", _isas(), ids=str)
def test_exp_is_within_a_last_place(isa):
    x = np.linspace(-87, 87, 60_000, dtype=np.float32).reshape(1, -1)
    program = FloatProgram((TensorLeaf(None),), (Step("sigmoid", (0,)),), None)
    got = run(region_kernel.region_kernel((60_000,), program, isa), native_target(), x, out_shape=x.shape,
              out_dtype="float32")  # fmt: skip
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=4e-7)
