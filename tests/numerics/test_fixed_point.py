"""Fixed-point factors against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvm.choices import ROUNDINGS
from quantvm.numerics.fixed_point import FixedPoint, divide, fixed_point, multiply, round_away

FACTORS = st.floats(2.0**-30, 200.0)
INTEGERS = st.integers(-(2**31), 2**31 - 1)


def exact(x: int, factor: FixedPoint) -> int:
    """The product as a fraction, rounded by the definition of the rule."""
    product = Fraction(x) * int(factor.multiplier) * Fraction(2) ** (int(factor.shift) - 31)
    low = math.floor(product)
    rest = product - low
    if rest != Fraction(1, 2):
        return low + (rest > Fraction(1, 2))
    up = {"upward": True, "away": product > 0, "to_even": low % 2 == 1}[factor.rounding]
    return low + up


@given(INTEGERS, st.floats(2.0**-40, 1.0), st.sampled_from(ROUNDINGS))
def test_products_are_rounded_by_the_rule(x, factor, rounding):
    found = fixed_point(factor, rounding)
    assert multiply(x, found) == exact(x, found)


@given(st.integers(-(2**20), 2**20), st.integers(-12, 7), st.sampled_from(ROUNDINGS))
def test_ties_and_factors_of_one_and_more(x, exponent, rounding):
    found = fixed_point(2.0**exponent, rounding)
    assert multiply(x, found) == exact(x, found)


@pytest.mark.parametrize(("rounding", "expected"), [
    ("upward", [-2, -1, 0, 1, 2, 3]), ("away", [-3, -2, -1, 1, 2, 3]), ("to_even", [-2, -2, 0, 0, 2, 2]),
])  # fmt: skip
def test_the_three_roundings_of_halves(rounding, expected):
    half = fixed_point(0.5, rounding)
    assert multiply([-5, -3, -1, 1, 3, 5], half).tolist() == expected


@given(FACTORS)
def test_a_multiplier_has_31_bits_and_the_error_of_one_rounding(factor):
    found = fixed_point(factor)
    assert 2**30 <= found.multiplier < 2**31
    value = Fraction(int(found.multiplier)) * Fraction(2) ** (int(found.shift) - 31)
    assert abs(value - Fraction(factor)) <= Fraction(factor) / 2**31


def test_a_significand_that_rounds_up_to_one_is_carried():
    found = fixed_point(np.nextafter(1.0, 0))
    assert (int(found.multiplier), int(found.shift)) == (2**30, 1)


def test_vectors_and_factors_beyond_every_shift():
    found = fixed_point(np.array([0.5, 0.0, 2.0**-60, 3.0]))
    assert multiply(np.array([7, 7, 2**31 - 1, -7]), found).tolist() == [4, 0, 0, -21]


def test_the_smallest_factors():
    largest = 2**31 - 1
    assert multiply([largest, -largest, 3], fixed_point(0.9 * 2.0**-31)).tolist() == [1, -1, 0]
    assert multiply([largest, -largest], fixed_point(0.9 * 2.0**-32)).tolist() == [0, 0]


@pytest.mark.parametrize(("rounding", "expected"), [
    ("away", [-3, -2, -1, 0, 1, 2, 3, 0]), ("towards_zero", [-2, -1, 0, 0, 0, 1, 2, 0]),
])  # fmt: skip
def test_quotients(rounding, expected):
    assert divide([-5, -3, -1, 0, 1, 3, 5, 0], [2, 2, 2, 7, 2, 2, 2, 3], rounding).tolist() == expected


@pytest.mark.parametrize("factor", [-0.5, math.nan, math.inf])
def test_what_is_no_factor(factor):
    with pytest.raises(ValueError, match="finite and not negative"):
        fixed_point(factor)


def test_round_away():
    assert round_away(np.array([-2.5, -0.5, -0.4, 0.5, 1.5, 2.4999998], np.float32)).tolist() == [-3, -1, 0, 1, 2, 2]
