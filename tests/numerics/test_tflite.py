"""TFLite's fixed-point arithmetic against exact fractions; its kernels are in tests/frontend/test_tflite_kernels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from quantvm.numerics import tflite
from quantvm.numerics.tflite import TfliteFactor
from quantvm.numerics.torch_engines import QuantParams, f32

Q, OUT = QuantParams(float(f32(0.05)), 10), QuantParams(float(f32(0.1)), 200)
SIGNED, SIGNED_OUT = QuantParams(float(f32(0.05)), -10, "int8"), QuantParams(float(f32(0.1)), 90, "int8")
HALF = Fraction(1, 2)


def away(x: Fraction) -> int:
    return math.floor(abs(x) + HALF) * (1 if x > 0 else -1)


def product(x: int, factor: TfliteFactor) -> int:
    high = math.floor(Fraction(x) * 2 ** max(factor.shift, 0) * factor.multiplier / 2**31 + HALF)
    return away(Fraction(high, 2 ** max(-factor.shift, 0)))


@pytest.mark.parametrize(
    "factor",
    [
        TfliteFactor(2**30, 1), TfliteFactor(2**30, 0), TfliteFactor(2**30, -1), TfliteFactor(2**30, -2),
        TfliteFactor(3 * 2**29, 2), TfliteFactor(1518500250, -3), TfliteFactor(2**31 - 1, 3),
        TfliteFactor(2**30 + 1, -7),
    ],
    ids=str,
)  # fmt: skip
def test_products_are_rounded_twice(factor):
    x = np.concatenate([np.arange(-700, 700), [2**20 + 1, -(2**20) - 1]])
    assert tflite.multiply(x, factor).tolist() == [product(int(each), factor) for each in x]


def test_factors():
    assert tflite.factor_of(0.75) == TfliteFactor(3 * 2**29, 0)
    assert tflite.factor_of(3.0) == TfliteFactor(3 * 2**29, 2)
    assert tflite.scale_factor(Q, OUT) == TfliteFactor(2**30, 0)
    one, tenth = QuantParams(1.0, 0), QuantParams(float(f32(0.1)), 0)
    quotient = f32(0.05) / (f32(0.1) * f32(0.1))
    assert tflite.quotient_factor(Q, tenth, tenth) == tflite.factor_of(float(quotient))
    assert tflite.quotient_factor(one, OUT, one) == tflite.factor_of(float(f32(1) / f32(0.1)))


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (2, 1), (3, 1), (4, 2), (49, 5), (64, 6)])
def test_a_mean_has_the_bits_of_its_count_in_the_multiplier(count, bits):
    found = tflite.mean_factor(Q, OUT, count)
    assert found == TfliteFactor((2**30 << bits) // count, -bits)
    sums = np.arange(-300, 300)
    expected = [min(max(product(int(each), found) + 200, 0), 255) for each in sums]
    assert tflite.mean(sums, count, Q, OUT).tolist() == expected


def test_means_of_factors_with_few_bits_left():
    tiny = QuantParams(2.0**-29, 0)
    assert tflite.mean_factor(tiny, QuantParams(1.0, 0), 2**20) == TfliteFactor((2**30 << 3) >> 20, -28 - 3)


def test_averages_and_requantized_integers():
    assert tflite.average([-5, -3, -1, 1, 3, 5], 2).tolist() == [-3, -2, -1, 1, 2, 3]
    x = np.arange(256)
    expected = [min(max(product(int(each) - 10, TfliteFactor(2**30, 0)) + 200, 0), 255) for each in x]
    assert tflite.requantize(x, Q, OUT).tolist() == expected
    assert expected[-1] == 255


def test_sums_of_unsigned_integers_are_fixed_point_and_of_signed_ones_floats():
    sums = np.arange(-900, 900)
    unsigned = [min(max(product(int(each), TfliteFactor(2**30, 0)) + 200, 0), 255) for each in sums]
    assert tflite.total(sums, 7, Q, OUT).tolist() == unsigned
    ratio, bias = tflite.sum_factor(SIGNED, SIGNED_OUT, 7)
    assert (ratio, bias) == (f32(0.5), f32(35))
    signed = [min(max(away(Fraction(int(each) - 70, 2) + 35) + 90, -128), 127) for each in sums]
    assert tflite.total(sums, 7, SIGNED, SIGNED_OUT).tolist() == signed


def test_quotients_are_the_nearest_integers():
    q, divisor_q, out_q = SIGNED, QuantParams(0.25, 3, "int8"), QuantParams(0.125, -5, "int8")
    found, is_defined = tflite.quotients(q, divisor_q, out_q, -128, 127)
    a, b = (np.arange(-128, 128) + 10) * q.scale, (np.arange(-128, 128) - 3) * 0.25
    with np.errstate(divide="ignore", invalid="ignore"):
        real = a[:, None] / b[None, :] / 0.125 - 5
    assert not is_defined.all()
    zero = 3 + 128
    assert is_defined[:, zero].all()
    assert (found[:118, zero] == -128).all()
    assert found[118, zero] == -5
    assert (found[119:, zero] == 127).all()
    others = np.delete(np.clip(real, -128, 127), zero, 1)
    differences = np.delete(found, zero, 1) - others
    assert np.abs(differences).max() < 0.5001
    assert (found[~is_defined] == -5).all()
    _, of_small = tflite.quotients(QuantParams(0.001, -10, "int8"), divisor_q, out_q, -128, 127)
    assert of_small[:, zero].all()
    assert not of_small[:, zero + 1].all()
    narrow, _ = tflite.quotients(q, divisor_q, out_q, -3, 100)
    np.testing.assert_array_equal(narrow, np.clip(found, -3, 100))
