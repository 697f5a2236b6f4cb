"""The quantizers of numerics/torch_engines.py, with facts for how halves round and where the zero point is added."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantvm.choices import Rounding
from quantvm.numerics.torch_engines import (
    F32,
    QuantParams,
    Values,
    dequantize_val,
    dequantize_vec,
    f32,
    integers_of,
    quantize_fma,
    reciprocal_f32,
)

from .facts import Facts


def fixed_point_rounding(facts: Facts) -> Rounding:
    """Returns how fixed-point products round halves, by the fact `rounding`."""
    # `is_valid` lets no other values pass
    return "to_even" if facts["rounding"] == "even" else facts["rounding"]  # type: ignore[return-value]


def integers_under(facts: Facts, steps_f32: Values, q: QuantParams, *, saturates: bool = True) -> NDArray[np.int64]:
    """Returns `integers_of(steps_f32)`, by the facts `rounding` and `zero_point`."""
    rounding, zero_point = facts["rounding"], facts["zero_point"]
    return integers_of(steps_f32, q, rounding=rounding, zero_point=zero_point, saturates=saturates)  # type: ignore[arg-type]


def quantized(x_f32: Values, q: QuantParams, facts: Facts, inverse_scale: Values = None) -> NDArray[np.int64]:
    """Returns float32 values quantized by the facts `rounding`, `zero_point` and `scale`."""
    inverse = reciprocal_f32(q.scale) if inverse_scale is None else inverse_scale
    if facts["zero_point"] == "fma":
        return quantize_fma(x_f32, inverse, q, facts["rounding"])  # type: ignore[arg-type]
    with np.errstate(over="ignore"):
        if facts["scale"] == "division":
            steps = np.divide(x_f32, q.scale_f32, dtype=f32)
        else:
            steps = np.multiply(x_f32, inverse, dtype=f32)
    return integers_under(facts, steps, q)


def scaled(acc_f32: Values, factor: Values, q: QuantParams, facts: Facts, *, saturates: bool) -> NDArray[np.int64]:
    """Returns acc * factor rounded to integers, by the facts `rounding` and `zero_point`."""
    if facts["zero_point"] == "fma":
        return quantize_fma(acc_f32, factor, q, facts["rounding"])  # type: ignore[arg-type]
    return integers_under(facts, np.multiply(acc_f32, factor, dtype=f32), q, saturates=saturates)


def dequantized(x_q: Values, q: QuantParams, facts: Facts) -> F32:
    """Returns the real values of integers, by the fact `dequantize`."""
    return dequantize_vec(x_q, q) if facts["dequantize"] == "fma" else dequantize_val(x_q, q)


def main_and_tail(
    compute: Callable[[Facts], NDArray], facts: Facts, tail: Facts, is_main: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Returns the integers under `facts`, and in the elements that the fact `tails` names those under `tail`.

    Args:
        compute: (facts) -> integers.
        facts: the main formula, and where scalar tails lie.
        tail: the formula of PyTorch's scalar tails.
        is_main: which elements PyTorch vectorises.
    """
    if facts["tails"] == "everywhere":
        return compute(tail)
    y = compute(facts)
    return y if facts["tails"] == "none" or is_main.all() else np.where(is_main, y, compute(tail))
