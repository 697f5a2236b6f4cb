"""Real numbers to integers under switched facts: how ties are rounded, and where the zero point is added."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.fixed_point import round_away
from quantvm.numerics.torch_engines import (
    F32,
    QuantParams,
    dequantize_val,
    dequantize_vec,
    f32,
    fma_f32,
    i64,
    reciprocal_f32,
)

from .facts import Facts

Values = Any
_BEYOND = f32(2147483520.0)


def rounded(x: Values, rounding: str) -> NDArray[np.float64]:
    """Returns x rounded to integers by a value of the fact `rounding`."""
    x = np.asarray(x, np.float64)
    if rounding == "even":
        return np.rint(x)
    if rounding == "away":
        return round_away(x)
    if rounding == "upward":
        return np.floor(x + 0.5)
    return np.floor(x) if rounding == "down" else np.trunc(x)


def integers_of(steps_f32: Values, q: QuantParams, facts: Facts, *, overflows: bool = False) -> NDArray[np.int64]:
    """Returns clipped integers of values in steps of the output, the zero point not in them.

    Args:
        steps_f32: float32, x / scale.
        q: parameters of the output.
        facts: `rounding` and `zero_point` are read; `fma` is the caller's, who has a product.
        overflows: whether what does not fit int32 becomes its least value, as x86's conversion does, or saturates.
    """
    where = facts["zero_point"]
    if where == "before":
        steps_f32 = np.add(steps_f32, f32(q.zero_point), dtype=f32)
    y = rounded(steps_f32, facts["rounding"])
    if overflows:
        y = np.where((y < 2.0**31) & (y >= -(2.0**31)), y, -(2.0**31))
    if where == "after":
        y = y + q.zero_point
    return np.clip(np.nan_to_num(y), q.quant_min, q.quant_max).astype(i64)


def quantized(x_f32: Values, q: QuantParams, facts: Facts, inverse_scale: Values = None) -> NDArray[np.int64]:
    """Returns float32 values quantized under `rounding`, `zero_point` and `scale`."""
    inverse = reciprocal_f32(q.scale) if inverse_scale is None else inverse_scale
    if facts["zero_point"] == "fma":
        return _rounded_fma(x_f32, inverse, q, facts)
    with np.errstate(over="ignore"):
        steps = (
            np.divide(x_f32, q.scale_f32, dtype=f32)
            if facts["scale"] == "division"
            else np.multiply(x_f32, inverse, dtype=f32)
        )
    return integers_of(np.minimum(steps, _BEYOND), q, facts)


def _rounded_fma(x_f32: Values, factor: Values, q: QuantParams, facts: Facts) -> NDArray[np.int64]:
    y = rounded(np.minimum(fma_f32(x_f32, factor, f32(q.zero_point)), _BEYOND), facts["rounding"])
    return np.clip(y, q.quant_min, q.quant_max).astype(i64)


def scaled(acc_f32: Values, factor: Values, q: QuantParams, facts: Facts, *, overflows: bool) -> NDArray[np.int64]:
    """Returns integers of acc * factor, under `rounding` and `zero_point`."""
    if facts["zero_point"] == "fma":
        return _rounded_fma(acc_f32, factor, q, facts)
    return integers_of(np.multiply(acc_f32, factor, dtype=f32), q, facts, overflows=overflows)


def dequantized(x_q: Values, q: QuantParams, facts: Facts) -> F32:
    """Returns the real values of integers, by a value of the fact `dequantize`."""
    return dequantize_vec(x_q, q) if facts["dequantize"] == "fma" else dequantize_val(x_q, q)
