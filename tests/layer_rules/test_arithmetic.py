"""Rules evaluated against PyTorch's operators, and against the formulas of numerics=integer, where halves are many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.choices import ROUNDINGS
from quantvm.layer_rules import Environment, Operator, Window, preset_of
from quantvm.layer_rules.family import family_of
from quantvm.numerics import integer
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.torch_engines import QuantParams, f32
from quantvm.verification.torch_state import TorchState

A, B, OUT = (QuantParams(float(f32(scale)), zero) for scale, zero in ((0.0625, 100), (0.03125, 31), (0.125, 77)))


def evaluated(operator: Operator, preset: str, *inputs: np.ndarray, environment: Environment | None = None):
    environment = environment or Environment(PyTorch("fbgemm"))
    facts = preset_of(operator, preset, environment).facts
    family = family_of(operator.kind)
    assert family.is_valid(operator, facts)
    return family.evaluate(operator, inputs, facts, environment, {}, None)


def quantized(x_u8: np.ndarray, q: QuantParams, *, channels_last: bool) -> torch.Tensor:
    x = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x_u8), q.scale, q.zero_point)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shapes", "formats"),
    [
        (((2, 19, 9, 10), (2, 19, 1, 1)), (False, False)),
        (((2, 19, 9, 10), (2, 19, 1, 1)), (True, False)),
        (((2, 19, 9, 10), (2, 1, 9, 10)), (True, False)),
        (((2, 19, 1, 10), (2, 19, 9, 1)), (False, False)),
        (((2, 19, 9, 10), (2, 19, 9, 10)), (True, False)),
        (((4, 19, 30, 31), (4, 19, 30, 31)), (True, True)),
        (((4, 19, 30, 31), (4, 19, 30, 1)), (False, False)),
        (((4, 190), (1, 190)), (False, False)),
    ],
    ids=str,
)
def test_additions_have_the_tails_of_pytorchs_loops(shapes, formats, threads, engine):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes)
    out_q = QuantParams(float(f32(0.0417)), 77)
    given = QuantParams(float(f32(0.0213)), 100), QuantParams(float(f32(0.0317)), 31)
    with TorchState(engine, threads).active():
        tensors = [quantized(x, q, channels_last=last) for x, q, last in zip((a, b), given, formats, strict=True)]
        expected = torch.ops.quantized.add(*tensors, out_q.scale, out_q.zero_point).int_repr().numpy()
    operator = Operator("add", given, out_q, all(formats), formats=formats, one_shape=shapes[0] == shapes[1])
    found = evaluated(operator, engine, a, b, environment=Environment(PyTorch(engine, threads)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_fixed_point_rounds_halves_as_the_preset_is_called(rounding):
    """Factors of 1/2 and 1/4 make every other product a half."""
    preset = "integer" if rounding == "upward" else f"integer:{rounding}"
    rng = np.random.default_rng(0)
    a, b = (rng.integers(90, 110, (2, 5, 4, 4)).astype(np.uint8) for _ in range(2))
    sums = integer.add(a, b, (A, B), OUT, relu=False, rounding=rounding)
    np.testing.assert_array_equal(evaluated(Operator("add", (A, B), OUT), preset, a, b), sums)
    products = integer.multiply(a, b, (A, B), OUT, relu=False, rounding=rounding)
    np.testing.assert_array_equal(evaluated(Operator("mul", (A, B), OUT), preset, a, b), products)
    joined = integer.requantize_table(A, OUT, rounding)[a]
    np.testing.assert_array_equal(evaluated(Operator("concat", (A,), OUT), preset, a), joined)
    weight, q = rng.integers(-3, 4, (6, 5)).astype(np.int8), QuantParams(1.0, 100)
    layer = Operator(
        "linear", (q,), QuantParams(2.0, 77), weight=weight, weight_scales=np.ones(1),
        weight_zero_points=np.zeros(1, np.int64),
    )  # fmt: skip
    x = a.transpose(0, 2, 3, 1)
    acc = (x.astype(np.int64) - 100) @ weight.T.astype(np.int64)
    r = integer.requantization(
        input_q=q, weight_scales=np.ones(1), bias_f32=None, output_q=layer.output, relu=False, channels=6,
        rounding=rounding,
    )  # fmt: skip
    assert len(np.unique(acc % 2)) == 2
    np.testing.assert_array_equal(evaluated(layer, preset, x), requantize(acc, r))


def test_onednns_plain_code_divides_by_the_output_scale():
    """It computes groups whose channels are no multiples of 4 on a CPU with AVX2 alone."""
    rng = np.random.default_rng(0)
    output = QuantParams(float(f32(0.3)), 77)
    weight = rng.integers(-64, 64, (48, 3, 1, 1)).astype(np.int8)
    scales = (0.15 / 0.0417 * 2.0 ** -rng.integers(3, 7, 48)).astype(f32).astype(np.float64)  # halves, nearly
    operator = Operator(
        "conv2d", (QuantParams(float(f32(0.0417)), 100),), output, window=Window((1, 1), groups=4), in_size=(24, 24),
        weight=weight, weight_scales=scales, weight_zero_points=np.zeros(48, np.int64),
    )  # fmt: skip
    x = rng.integers(0, 256, (1, 12, 24, 24)).astype(np.uint8)
    environment = Environment(PyTorch("onednn", cpu=Cpu(avx512=False, vnni=False)))
    centred = (x.astype(np.int64) - 100).reshape(1, 4, 3, 24, 24)
    acc = np.einsum("ngchw,goc->nhwgo", centred, weight.reshape(4, 12, 3).astype(np.int64)).reshape(1, 24, 24, 48)
    expected = {
        divides: requantize(acc, requantization(
            "onednn", "conv", input_q=operator.inputs[0], weight_scales=scales, bias_f32=None, output_q=output,
            relu=False, channels=48, divides=divides,
        )).transpose(0, 3, 1, 2)
        for divides in (False, True)
    }  # fmt: skip
    assert not np.array_equal(expected[False], expected[True])
    np.testing.assert_array_equal(evaluated(operator, "onednn", x, environment=environment), expected[True])


@pytest.mark.parametrize("zero_point", [76, 77])
def test_limits_of_integers_are_rounded_behind_the_zero_point(zero_point):
    """A limit half-way between two integers is rounded to even with the zero point in it."""
    q, x = QuantParams(0.5, zero_point), np.arange(256).astype(np.uint8)
    operator = Operator("clip", (q,), q, options=(-1.25, 3.25))
    low, high = integer.clip_limits((-1.25, 3.25), q)
    assert (low, high) == ((74, 82) if zero_point == 76 else (74, 84))
    np.testing.assert_array_equal(evaluated(operator, "integer", x), np.clip(x, low, high))
