"""Integer-only arithmetic between quantize and dequantize, as in TVM's former QNN dialect, in NumPy.

A real factor becomes a multiplier of 31 bits and a shift; products with it have 64 bits. If a product lies half-way
between two integers, `rounding` decides: QNN has `upward` (its default) and `away` from zero; `to_even` is what
floating point would do. Imports neither torch nor tvm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantvm.choices import Rounding

Values = Any
"""Numbers, or an array of any numeric dtype."""

MULTIPLIER_BITS = 31


@dataclass(frozen=True)
class FixedPoint:
    """Real factors as multiplier * 2^(shift - 31).

    Attributes:
        multiplier: int64, in [2^30, 2^31), or 0 for a factor of 0.
        shift: int64.
        rounding: how products half-way between two integers are rounded.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    rounding: Rounding = "upward"

    @property
    def scaled_multiplier(self) -> NDArray[np.int64]:
        """The multiplier, shifted left where the factor is 1 or more."""
        return self.multiplier << np.maximum(self.shift, 0)

    @property
    def right_shift(self) -> NDArray[np.int64]:
        """Number of bits by which the product is shifted right, at least 31."""
        return MULTIPLIER_BITS + np.maximum(-self.shift, 0)


def fixed_point(factor: Values, rounding: Rounding = "upward") -> FixedPoint:
    """Returns the fixed-point form of real factors.

    Computes: factor = significand * 2^shift with significand in [0.5, 1); multiplier = round(significand * 2^31), ties
        away from zero. Reference: `GetFixedPointMultiplierShift` in src/relay/qnn/utils.cc of TVM 0.16.

    Args:
        factor: float64, not negative.
        rounding: how products half-way between two integers are rounded.

    Raises:
        ValueError: a factor is negative, not finite, or so small that its product of 32 bits is always 0.
    """
    factor = np.asarray(factor, np.float64)
    if not np.isfinite(factor).all() or (factor < 0).any():
        raise ValueError(f"a factor must be finite and not negative, got {factor}")
    significand, shift = np.frexp(factor)
    multiplier = np.floor(significand * 2.0**MULTIPLIER_BITS + 0.5).astype(np.int64)
    carried = multiplier == 1 << MULTIPLIER_BITS
    multiplier, shift = np.where(carried, multiplier >> 1, multiplier), shift.astype(np.int64) + carried
    # Processors cannot shift right by 64 bits or more; the result is 0.
    gone = MULTIPLIER_BITS - shift > 62
    return FixedPoint(np.where(gone, 0, multiplier), np.where(gone, 0, shift), rounding)


def multiply(x_i32: Values, factor: FixedPoint) -> NDArray[np.int64]:
    """Returns x * factor, rounded to integers.

    Computes: p = x * multiplier * 2^max(shift, 0), in 64 bits; p >> r with r = 31 + max(-shift, 0), after adding
        upward: 2^(r-1); away: 2^(r-1), less 1 where p < 0; to_even: 2^(r-1) - 1 + bit r of p.
    Reference: `tir.q_multiply_shift` and `FixedPointMultiplyToNearest` of TVM 0.16.
    """
    product, right = np.asarray(x_i32, np.int64) * factor.scaled_multiplier, factor.right_shift
    half = np.int64(1) << (right - 1)
    if factor.rounding == "away":
        half = half - (product < 0)
    elif factor.rounding == "to_even":
        half = half - 1 + ((product >> right) & 1)
    return (product + half) >> right


def divide(total: Values, count: Values, rounding: Literal["away", "towards_zero"]) -> NDArray[np.int64]:
    """Returns the quotient of integers, rounded to the nearest with halves away from zero, or always towards zero."""
    total, count = np.asarray(total, np.int64), np.asarray(count, np.int64)
    nudge = count // 2 if rounding == "away" else 0
    return np.sign(total) * ((np.abs(total) + nudge) // count)


def round_away(x_f32: Values) -> NDArray[np.float64]:
    """Returns float32 values rounded to integers, ties away from zero, as C's `roundf`."""
    x = np.asarray(x_f32, np.float64)
    return np.copysign(np.floor(np.abs(x) + 0.5), x)
