"""TIR forms of the quantizers and dequantizers in `quantvm.numerics.torch_engines`, under the same names."""

from __future__ import annotations

import numpy as np

from quantvm.numerics.torch_engines import QuantParams, f32, reciprocal_f32

from .builder import LANES, Expr, cast, clamp, fma, round_even, rounded, splat


def _saturate(rounded_f32: Expr, shift: int, q: QuantParams, lanes: int) -> Expr:
    """Returns int32 clip(rounded + shift) of float32 integers; exact, since the bounds are small."""
    low, high = float(q.quant_min - shift), float(q.quant_max - shift)
    value = cast(clamp(rounded_f32, splat(low, lanes, "float32"), splat(high, lanes, "float32")), "int32", lanes)
    return value + splat(shift, lanes, "int32") if shift else value


def quantize_vec(x_f32: Expr, inverse_scale: np.float32, q: QuantParams, lanes: int = LANES) -> Expr:
    """Returns int32 clip(rne(fl(x * inverse_scale)) + zero_point)."""
    return _saturate(round_even(x_f32 * splat(inverse_scale, lanes, "float32")), q.zero_point, q, lanes)


def quantize_val(x_f32: Expr, q: QuantParams, lanes: int = LANES) -> Expr:
    """Returns int32 clip(rne(fl(fl(x * fl(1/scale)) + zero_point)))."""
    scaled = rounded(x_f32 * splat(reciprocal_f32(q.scale), lanes, "float32"), lanes)
    return _saturate(round_even(scaled + splat(float(q.zero_point), lanes, "float32")), 0, q, lanes)


def quantize_arr(x_f32: Expr, q: QuantParams, lanes: int = LANES) -> Expr:
    """Returns int32 clip(rne(fma(x, fl(1/scale), zero_point)))."""
    inverse, zero = splat(reciprocal_f32(q.scale), lanes, "float32"), splat(float(q.zero_point), lanes, "float32")
    return _saturate(round_even(fma(x_f32, inverse, zero, lanes)), 0, q, lanes)


def dequantize_vec(x_q: Expr, q: QuantParams, lanes: int = LANES) -> Expr:
    """Returns fma(scale, x, fl(scale * -zero_point))."""
    shift = np.multiply(q.scale_f32, f32(-q.zero_point), dtype=f32)
    return fma(cast(x_q, "float32", lanes), splat(q.scale_f32, lanes, "float32"), splat(shift, lanes, "float32"), lanes)


def dequantize_val(x_q: Expr, q: QuantParams, lanes: int = LANES) -> Expr:
    """Returns fl(scale * (x - zero_point)), which is not contracted with a following addition."""
    centred = cast(x_q, "int32", lanes) - splat(q.zero_point, lanes, "int32")
    return rounded(splat(q.scale_f32, lanes, "float32") * cast(centred, "float32", lanes), lanes)
