"""TIR form of `quantvm.numerics.fixed_point.multiply`."""

from __future__ import annotations

from quantvm.choices import Rounding
from quantvm.numerics.fixed_point import FixedPoint

from .builder import LANES, Expr, cast, splat


def fixed_multiply(x_i32: Expr, multiplier: Expr, right: Expr, rounding: Rounding, lanes: int = LANES) -> Expr:
    """Returns int32 x * factor, rounded to integers.

    Args:
        x_i32: int32 vector.
        multiplier: int64 vector, `FixedPoint.scaled_multiplier`.
        right: int64 vector, `FixedPoint.right_shift`.
        rounding: how ties are rounded.
        lanes: number of lanes of all vectors.
    """

    def constant(value: int) -> Expr:
        return splat(value, lanes, "int64")

    product = cast(x_i32, "int64", lanes) * multiplier
    half = constant(1) << (right - constant(1))
    if rounding == "away":
        half = half + (product >> constant(63))
    elif rounding == "to_even":
        half = half - constant(1) + ((product >> right) & constant(1))
    return cast((product + half) >> right, "int32", lanes)


def fixed_multiply_by(x_i32: Expr, factor: FixedPoint, lanes: int = LANES) -> Expr:
    """Returns int32 x * factor, with one factor for all lanes."""
    multiplier, right = (splat(int(v), lanes, "int64") for v in (factor.scaled_multiplier, factor.right_shift))
    return fixed_multiply(x_i32, multiplier, right, factor.rounding, lanes)
