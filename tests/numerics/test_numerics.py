"""The NumPy arithmetic against PyTorch's operators: all 256 values, and inputs that lie on ties."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantvm.choices import ENGINES
from quantvm.numerics import dispatch
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.tensor_iterator import vectorised_cut
from quantvm.numerics.torch_engines import (
    QuantParams,
    convert_to_int32,
    dequantize_val,
    dequantize_vec,
    fma_f32,
    quantize_arr,
    quantize_val,
    quantize_vec,
    reciprocal_f32,
    reciprocal_f64,
)
from quantvm.runtime.target import cpu_features

Q = torch.ops.quantized
f32 = np.float32
SCALES = [float(f32(s)) for s in (0.0173, 2.0**-6, 1.0, 0.1, 1e-5, 37.5)]
UINT8 = [QuantParams(s, z) for s, z in itertools.product(SCALES, (0, 1, 101, 128, 255))]
INT8 = [QuantParams(s, z, "int8") for s, z in itertools.product(SCALES[:3], (-128, -1, 0, 127))]
TORCH_DTYPE = {"uint8": torch.quint8, "int8": torch.qint8}
# FBGEMM saturates pairs of products on CPUs without VNNI, in every kernel
HAS_VNNI = "avx512_vnni" in cpu_features()
needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="the formulas are those of a CPU with AVX512-VNNI")


pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


def as_torch(x_q: np.ndarray, q: QuantParams) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(torch.from_numpy(x_q.astype(q.dtype)), q.scale, q.zero_point)


def ties(q: QuantParams) -> np.ndarray:
    """Returns every multiple of half a step from below the range to above it, and its neighbours on both sides."""
    halves = np.arange(2 * q.quant_min - 40, 2 * q.quant_max + 40, dtype=np.float64) / 2 - q.zero_point
    x = (halves * q.scale).astype(f32)
    return np.concatenate([x, np.nextafter(x, f32(np.inf)), np.nextafter(x, f32(-np.inf)), f32([0, -0.0, 1e30, -1e30])])


def all_values(q: QuantParams) -> np.ndarray:
    return np.arange(256) + q.quant_min


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60])
def test_scale_must_be_a_positive_finite_float32(scale):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="scale must be"):
        QuantParams(scale, 0)


@pytest.mark.parametrize(("zero_point", "dtype"), [(-1, "uint8"), (256, "uint8"), (-129, "int8"), (128, "int8")])
def test_zero_point_must_lie_in_the_dtype(zero_point, dtype):
    with pytest.raises(ValueError, match="outside of"):
        QuantParams(1.0, zero_point, dtype)


def test_dtype_must_be_a_byte():
    with pytest.raises(ValueError, match="dtype must be"):
        QuantParams(1.0, 0, "int16")


# ------------------------------------------------------------------ one rounding


def nearest_f32(exact: Fraction) -> np.float32:
    """Returns the float32 nearest to an exact value, ties to even."""
    guess = f32(float(exact))
    candidates = [guess, np.nextafter(guess, f32(np.inf)), np.nextafter(guess, f32(-np.inf))]

    def distance(c: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1

    return min((c for c in candidates if np.isfinite(c)), key=distance)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
# operands whose products lie on or next to float32 ties: few significant bits, exponents close together
near_ties = st.builds(
    lambda m, e: float(np.ldexp(f32(m), e)), st.integers(-(2**24) + 1, 2**24 - 1), st.integers(-30, 2)
)


@settings(max_examples=1500, deadline=None)
@given(*(st.one_of(floats, near_ties),) * 3)
def test_fma_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assume(abs(exact) < Fraction(float(np.finfo(f32).max)))
    assert fma_f32(f32(a), f32(b), f32(c)) == nearest_f32(exact)


def test_fma_differs_from_two_roundings():
    a, b = f32(1 + 2**-12), f32(1 + 2**-12)
    c = f32(-1)
    assert fma_f32(a, b, c) != a * b + c
    assert float(fma_f32(a, b, c)) == (1 + 2**-12) ** 2 - 1


def test_convert_to_int32_turns_what_does_not_fit_into_the_minimum():
    x = f32(
        [2147483520.0, 2147483648.0, -2147483648.0, -2147483904.0, 1e30, 0.5, 1.5, -2.5, -2147483520.0, -(2**30) - 128]
    )
    expected = [2147483520, -(2**31), -(2**31), -(2**31), -(2**31), 0, 2, -2, -2147483520, -(2**30) - 128]
    np.testing.assert_array_equal(convert_to_int32(x), expected)


def test_reciprocals_differ_only_where_the_scale_is_no_float32():
    scales = np.random.default_rng(0).uniform(1e-4, 1, 2000)
    exact = [float(f32(s)) for s in scales]
    assert all(reciprocal_f32(s) == reciprocal_f64(s) for s in exact)
    assert any(reciprocal_f32(s) != reciprocal_f64(s) for s in scales)


# ------------------------------------------------------------------ quantizers and dequantizers


@pytest.mark.parametrize("q", UINT8 + INT8, ids=str)
def test_quantize_arr_is_quantize_per_tensor(q):
    x = ties(q)
    expected = torch.quantize_per_tensor(torch.from_numpy(x), q.scale, q.zero_point, TORCH_DTYPE[q.dtype])
    np.testing.assert_array_equal(quantize_arr(x, q), expected.int_repr().numpy())


@pytest.mark.parametrize("q", UINT8 + INT8, ids=str)
def test_quantize_val_is_quantize_per_channel(q):
    x = ties(q)
    x = x[np.abs(x) < 1e29]  # beyond int32 the rounding of x86 differs; no observer gives such a scale
    scales, zero_points = torch.tensor([q.scale], dtype=torch.float64), torch.tensor([q.zero_point])
    expected = torch.quantize_per_channel(torch.from_numpy(x)[None], scales, zero_points, 0, TORCH_DTYPE[q.dtype])
    np.testing.assert_array_equal(quantize_val(x, q), expected.int_repr().numpy()[0])


@pytest.mark.parametrize("q", UINT8 + INT8, ids=str)
def test_dequantize_val_is_dequantize(q):
    x_q = all_values(q)
    expected = as_torch(x_q, q).dequantize().numpy()
    np.testing.assert_array_equal(dequantize_val(x_q, q), expected)


def test_the_three_quantizers_differ_on_ties():
    q = QuantParams(2.0**-6, 101)
    x = ties(q)
    vec = quantize_vec(x, reciprocal_f32(q.scale), q)
    assert (vec != quantize_val(x, q)).any()
    rough = QuantParams(SCALES[0], 101)
    assert (quantize_arr(ties(rough), rough) != quantize_val(ties(rough), rough)).any()


ADD_PARAMS = [
    (QuantParams(SCALES[0], 101), QuantParams(SCALES[3], 3), QuantParams(float(f32(0.0441)), 77)),
    (QuantParams(2.0**-5, 128), QuantParams(2.0**-6, 1), QuantParams(2.0**-4, 101)),
    (QuantParams(2.0**-5, 0), QuantParams(2.0**-5, 255), QuantParams(2.0**-4, 255)),
]


@pytest.mark.parametrize("params", ADD_PARAMS)
def test_vec_and_val_make_quantized_add_on_all_pairs(params):
    """Blocks of 64 take the vectorised formulas; one element alone is a scalar tail."""
    a_q, b_q, out_q = params
    a, b = (m.reshape(-1) for m in np.meshgrid(np.arange(256), np.arange(256)))
    total = np.add(dequantize_vec(a, a_q), dequantize_vec(b, b_q), dtype=f32)
    expected = Q.add(as_torch(a, a_q), as_torch(b, b_q), out_q.scale, out_q.zero_point).int_repr().numpy()
    actual = quantize_vec(total, reciprocal_f32(out_q.scale), out_q)
    np.testing.assert_array_equal(actual, expected)
    # 63 elements are all tail: PyTorch's loop over the outer dimension of a strided tensor keeps rows apart
    rows = [v.reshape(-1, 16)[:, :15] for v in (a, b)]
    tail = np.add(dequantize_val(rows[0], a_q), dequantize_val(rows[1], b_q), dtype=f32)
    first, second = (as_torch(v.reshape(-1, 16), q)[:, :15] for v, q in ((a, a_q), (b, b_q)))
    expected = Q.add(first, second, out_q.scale, out_q.zero_point).int_repr().numpy()
    np.testing.assert_array_equal(quantize_val(tail, out_q), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("numel", [1, 63, 64, 65, 333, 32767, 32769, 65536, 65537, 98304, 98311, 102717])
def test_vectorised_cut_is_where_torch_cuts(numel, threads):
    a_q, b_q, out_q = ADD_PARAMS[1]
    a, b = (m.reshape(-1) for m in np.meshgrid(np.arange(256), np.arange(256)))
    vec = Q.add(as_torch(a, a_q), as_torch(b, b_q), out_q.scale, out_q.zero_point).int_repr().numpy()
    tail_f32 = np.add(dequantize_val(a, a_q), dequantize_val(b, b_q), dtype=f32)
    at = int(np.flatnonzero(vec != quantize_val(tail_f32, out_q))[0])  # a pair that tells which loop it was in
    torch.set_num_threads(threads)
    first, second = (as_torch(np.full(numel, v[at]), q) for v, q in ((a, a_q), (b, b_q)))
    was_vectorised = Q.add(first, second, out_q.scale, out_q.zero_point).int_repr().numpy() == vec[at]
    np.testing.assert_array_equal(vectorised_cut(numel, PyTorch("fbgemm", threads)), was_vectorised)


# ------------------------------------------------------------------ requantization

BIASES = {"none": None, "bias": f32(np.linspace(-3, 3, 256))}
WEIGHT_SCALES = {
    "per tensor": np.array([float(f32(0.0113))]),
    "per channel": np.linspace(0.002, 0.02, 256).astype(f32).astype(np.float64),
    "powers of two": 2.0 ** np.repeat([-8.0, -7.0, -6.0, -5.0], 64),
}
LINEAR_PARAMS = [
    (QuantParams(SCALES[0], 101), QuantParams(float(f32(0.0371)), 77)),
    (QuantParams(2.0**-6, 0), QuantParams(2.0**-3, 128)),
    (QuantParams(2.0**-6, 255), QuantParams(2.0**-3, 255)),
    (QuantParams(0.5, 128), QuantParams(float(f32(1e-4)), 0)),  # nearly all saturate
    (QuantParams(37.5, 128), QuantParams(float(f32(1e-6)), 3)),  # and overflow int32 before that
]


def quantized_weight(w: np.ndarray, scales: np.ndarray) -> torch.Tensor:
    values = torch.from_numpy(w)
    if scales.size == 1:
        return torch._make_per_tensor_quantized_tensor(values, float(scales[0]), 0)
    zeros = torch.zeros(scales.size, dtype=torch.long)
    return torch._make_per_channel_quantized_tensor(values, torch.from_numpy(scales), zeros, 0)


@needs_vnni
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("scheme", WEIGHT_SCALES)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("relu", [False, True])
def test_requantize_every_product_of_two_bytes(engine, kind, scheme, bias, relu):
    """One input feature: the accumulators are all products (x - z) * w, for 256 x and 256 w."""
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no engine {engine}")
    torch.backends.quantized.engine = engine
    w = np.arange(-128, 128).astype(np.int8)
    bias_f32 = None if BIASES[bias] is None else torch.from_numpy(BIASES[bias])
    unit = (1, 1) if kind == "conv" else ()
    weight = quantized_weight(w.reshape(256, 1, *unit), WEIGHT_SCALES[scheme])
    if kind == "conv":
        packed = Q.conv2d_prepack(weight, bias_f32, [1, 1], [0, 0], [1, 1], 1)
        op = Q.conv2d_relu if relu else Q.conv2d
        rule = dispatch.conv_library(PyTorch(engine), 1, symmetric_weights=True)
    else:
        packed = Q.linear_prepack(weight, bias_f32)
        op = Q.linear_relu if relu else Q.linear
        rule = dispatch.linear_library(PyTorch(engine))
    for x_q, out_q in LINEAR_PARAMS:
        x = np.arange(256)
        r = requantization(
            rule, kind, input_q=x_q, weight_scales=WEIGHT_SCALES[scheme], bias_f32=BIASES[bias], output_q=out_q,
            relu=relu, channels=256,
        )  # fmt: skip
        acc = (x[:, None] - x_q.zero_point) * w.astype(np.int64)[None]
        expected = op(as_torch(x.reshape(256, 1, *unit), x_q), packed, out_q.scale, out_q.zero_point)
        np.testing.assert_array_equal(
            requantize(acc, r), expected.int_repr().numpy().reshape(256, 256), err_msg=str(out_q)
        )


def requantized(rule: str, acc: int, relu: bool = False) -> int:
    r = requantization(
        rule, "conv", input_q=QuantParams(1.0, 0), weight_scales=np.array([1.0]), bias_f32=None,
        output_q=QuantParams(2.0**-10, 10), relu=relu, channels=1,
    )  # fmt: skip
    return int(requantize(np.array([acc]), r)[0])


def test_what_overflows_int32_becomes_the_least_value_in_fbgemm_and_the_greatest_in_onednn():
    greatest_that_fits = 2**21 - 1
    assert requantized("fbgemm", greatest_that_fits) == requantized("onednn", greatest_that_fits) == 255
    assert requantized("fbgemm", 2**21) == 0
    assert requantized("fbgemm", 2**21, relu=True) == 10
    assert requantized("onednn", 2**21) == 255


@pytest.mark.parametrize("rule", ["fbgemm", "onednn", "qnnpack"])
def test_relu_limits_at_the_zero_point(rule):
    assert requantized(rule, -1) == 0
    assert requantized(rule, -1, relu=True) == 10


def test_the_rules_differ_in_where_the_zero_point_is_added():
    def half(rule: str) -> int:
        r = requantization(
            rule, "conv", input_q=QuantParams(1.0, 0), weight_scales=np.array([1.0]), bias_f32=None,
            output_q=QuantParams(2.0, 101), relu=False, channels=1,
        )  # fmt: skip
        return int(requantize(np.array([5]), r)[0])

    assert (half("fbgemm"), half("qnnpack"), half("onednn")) == (103, 103, 104)


def test_rules_of_the_engines():
    conv = {
        (engine, groups, symmetric): dispatch.conv_library(PyTorch(engine), groups, symmetric_weights=symmetric)
        for engine, groups, symmetric in itertools.product(ENGINES, (1, 100, 101), (True, False))
    }
    assert [key for key, rule in conv.items() if rule == "onednn"] == [
        ("x86", 1, True), ("x86", 100, True), *(("onednn", g, s) for g in (1, 100, 101) for s in (True, False)),
    ]  # fmt: skip
    assert {rule for (engine, _, _), rule in conv.items() if engine == "fbgemm"} == {"fbgemm"}
    assert {rule for (engine, _, _), rule in conv.items() if engine == "qnnpack"} == {"qnnpack"}
    linear = {engine: dispatch.linear_library(PyTorch(engine)) for engine in ENGINES}
    assert linear == {"fbgemm": "fbgemm", "x86": "fbgemm", "onednn": "onednn", "qnnpack": "qnnpack"}


def test_x86_is_fbgemm_without_vnni():
    cpu = Cpu(vnni=False)
    rules = {engine: dispatch.conv_library(PyTorch(engine, cpu=cpu), 1, symmetric_weights=True) for engine in ENGINES}
    assert rules == {"fbgemm": "fbgemm", "x86": "fbgemm", "onednn": "onednn", "qnnpack": "qnnpack"}


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "groups", "refused"),
    [
        (5, 7, 1, False),
        (16, 16, 16, False),
        (16, 32, 4, False),
        (16, 32, 16, True),
        (12, 20, 2, True),
        (24, 16, 4, True),
    ],
)
def test_onednn_has_no_avx2_kernel_for_groups_of_odd_channels(in_channels, out_channels, groups, refused):
    assert dispatch.onednn_avx2_refuses(in_channels, out_channels, groups) == refused


# channels, out channels, groups, kernel, stride, padding, dilation: FBGEMM's depthwise kernel and its limits
DEPTHWISE = [
    (8, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    (16, 16, 16, (5, 5), (2, 2), (2, 2), (1, 1)),
    (8, 8, 8, (7, 7), (1, 2), (3, 3), (1, 1)),
    (8, 16, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    (8, 24, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    (12, 12, 12, (3, 3), (1, 1), (1, 1), (1, 1)),
    (8, 8, 8, (3, 3), (3, 3), (1, 1), (1, 1)),
    (8, 8, 8, (3, 3), (1, 1), (0, 0), (1, 1)),
    (8, 8, 8, (3, 3), (1, 1), (2, 2), (2, 2)),
    (8, 8, 8, (3, 5), (1, 1), (1, 2), (1, 1)),
    (8, 8, 8, (9, 9), (1, 1), (4, 4), (1, 1)),
    (8, 8, 8, (1, 1), (1, 1), (0, 0), (1, 1)),
    (16, 16, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
]


@needs_vnni
@pytest.mark.parametrize("geometry", DEPTHWISE, ids=str)
def test_fbgemm_saturates_exactly_where_we_say(geometry):
    channels, out_channels, groups, kernel, stride, padding, dilation = geometry
    w = torch.full((out_channels, channels // groups, *kernel), 127, dtype=torch.int8)
    packed = Q.conv2d_prepack(
        torch._make_per_tensor_quantized_tensor(w, 1.0, 0), None, list(stride), list(padding), list(dilation), groups
    )
    x = as_torch(np.full((1, channels, 12, 12), 255), QuantParams(1.0, 0))
    products = 255 * 127 * kernel[0] * kernel[1] * channels // groups
    y = Q.conv2d(x, packed, products / 200, 0).int_repr()[0, 0, 6 // stride[0], 6 // stride[1]].item()
    assert (y != 200) == dispatch.fbgemm_depthwise_saturates(*geometry)
