"""The quantizers under each choice of facts, on values where the choices differ."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.layer_rules.rounding import (
    dequantized,
    fixed_point_rounding,
    integers_under,
    main_and_tail,
    quantized,
    scaled,
)
from quantvm.numerics import torch_engines
from quantvm.numerics.torch_engines import QuantParams, f32

Q = QuantParams(float(f32(0.0417)), 3)
TIES = (np.arange(-8, 508) / 2).astype(f32) * Q.scale_f32
HALVES = f32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("even", [-2, -2, 0, 0, 2, 2]),
        ("away", [-3, -2, -1, 1, 2, 3]),
        ("upward", [-2, -1, 0, 1, 2, 3]),
        ("down", [-3, -2, -1, 0, 1, 2]),
        ("towards_zero", [-2, -1, 0, 0, 1, 2]),
    ],
)
def test_halves(rounding, expected):
    found = integers_under({"rounding": rounding, "zero_point": "after"}, HALVES, Q)
    assert found.tolist() == [max(y + 3, 0) for y in expected]


def test_the_places_of_the_zero_point():
    def of(place: str) -> list[int]:
        return integers_under({"rounding": "even", "zero_point": place}, HALVES, Q).tolist()

    assert of("after") == [1, 1, 3, 3, 5, 5]
    assert of("before") == [0, 2, 2, 4, 4, 6]
    assert of("dropped") == [0, 0, 0, 0, 2, 2]


def test_values_beyond_int32_saturate_if_asked():
    facts, huge = {"rounding": "even", "zero_point": "after"}, f32([1e30, -1e30])
    assert integers_under(facts, huge, Q).tolist() == [255, 0]
    assert integers_under(facts, huge, Q, saturates=False).tolist() == [0, 0]


def test_values_are_multiplied_by_a_reciprocal_or_divided():
    facts = {"rounding": "even", "zero_point": "after", "scale": "reciprocal"}
    divided = quantized(TIES, Q, {**facts, "scale": "division"})
    by_reciprocal = quantized(TIES, Q, facts)
    np.testing.assert_array_equal(
        by_reciprocal, torch_engines.quantize_vec(TIES, torch_engines.reciprocal_f32(Q.scale), Q)
    )
    np.testing.assert_array_equal(divided, np.clip(np.rint(TIES / Q.scale_f32) + 3, 0, 255))
    assert (divided != by_reciprocal).any()
    assert (quantized(TIES, Q, facts, inverse_scale=f32(20)) != by_reciprocal).any()


def test_one_fma_takes_product_and_zero_point():
    facts = {"rounding": "even", "zero_point": "fma", "scale": "reciprocal"}
    expected = torch_engines.quantize_arr(TIES, Q)
    np.testing.assert_array_equal(quantized(TIES, Q, facts), expected)
    np.testing.assert_array_equal(
        scaled(TIES, torch_engines.reciprocal_f32(Q.scale), Q, facts, saturates=False), expected
    )


def test_dequantized_by_one_product_or_one_fma():
    x = np.arange(256)
    np.testing.assert_array_equal(dequantized(x, Q, {"dequantize": "fma"}), torch_engines.dequantize_vec(x, Q))
    np.testing.assert_array_equal(dequantized(x, Q, {"dequantize": "product"}), torch_engines.dequantize_val(x, Q))


@pytest.mark.parametrize(
    ("tails", "is_main", "expected"),
    [
        ("torch", [1, 0], [10, 20]),
        ("none", [1, 0], [10, 10]),
        ("everywhere", [1, 0], [20, 20]),
        ("torch", [1, 1], [10] * 2),
    ],
)
def test_tails(tails, is_main, expected):
    found = main_and_tail(
        lambda facts: np.full(2, facts["y"]), {"tails": tails, "y": 10}, {"y": 20}, np.array(is_main, bool)
    )
    assert found.tolist() == expected


def test_fixed_point_has_other_words_for_even():
    assert [fixed_point_rounding({"rounding": r}) for r in ("even", "away", "upward")] == ["to_even", "away", "upward"]
