"""The arithmetic of numerics=integer, in NumPy: no float between quantize and dequantize.

It follows TVM's former QNN dialect, to which the original benchmark compiled PyTorch's models: exact integer
accumulators, biases rounded at compile time to steps of the accumulator, requantization in fixed point. Its results are
near PyTorch's but not equal to them, because PyTorch computes with floats between the integers. Unary operators are
tables of 256 entries, made at compile time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantvm.choices import NUMERICS, Numerics, Rounding
from quantvm.numerics import fixed_point
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.fixed_point import FixedPoint
from quantvm.numerics.requantization import IntegerRequantization
from quantvm.numerics.torch_engines import QuantParams, Values, dequantize_val, f32, f64


def parse_numerics(text: str) -> tuple[Numerics, Rounding]:
    """Returns the numerics that `text` names, and how fixed-point products round ties.

    Raises:
        ValueError: `text` is not in `NUMERICS`.
    """
    if text not in NUMERICS:
        raise ValueError(f"unknown numerics '{text}', expected {', '.join(NUMERICS)}")
    name, _, rounding = text.partition(":")
    return name, rounding or "upward"  # type: ignore[return-value]  # NUMERICS holds nothing else


def quantize(x_f32: Values, q: QuantParams) -> NDArray[np.int64]:
    """Returns clip(round(fl(x / scale)) + zero_point), ties away from zero; NaN is treated as 0."""
    steps = fixed_point.round_away(np.divide(x_f32, q.scale_f32, dtype=f32))
    return np.clip(np.nan_to_num(steps) + q.zero_point, q.quant_min, q.quant_max).astype(np.int64)


def requantization(
    *, input_q: QuantParams, weight_scales: NDArray[np.float64], bias_f32: NDArray[np.float32] | None,
    output_q: QuantParams, relu: bool, channels: int, rounding: Rounding,
) -> IntegerRequantization:  # fmt: skip
    """Returns the requantization of a convolution or matrix product.

    Computes: p = fl(sa * sw); bias_i32 = clip(round(fl(bias / p))), ties away from zero; factor = p / so, in double.

    Args:
        input_q: parameters of the activation.
        weight_scales: (C,) for per-channel weights, (1,) for per-tensor ones.
        bias_f32: (C,) or None.
        output_q: parameters of the output.
        relu: whether a ReLU follows.
        channels: C, the number of output channels.
        rounding: how ties are rounded.

    Reference: python/tvm/relay/frontend/qnn_torch.py `_do_bias_and_requantize` of TVM 0.16.
    """
    product = np.multiply(input_q.scale_f32, weight_scales.astype(f32), dtype=f32)
    product = np.ascontiguousarray(np.broadcast_to(product, (channels,)))
    factor = product.astype(f64) / f64(output_q.scale_f32)
    bias_i32 = None
    if bias_f32 is not None:
        steps = fixed_point.round_away(np.divide(bias_f32, product, dtype=f32))
        bias_i32 = np.clip(steps, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(np.int32)
    return IntegerRequantization(fixed_point.fixed_point(factor, rounding), bias_i32, output_q, relu)


def scale_factor(q: QuantParams, out_q: QuantParams, rounding: Rounding) -> FixedPoint | None:
    """Returns the factor s / so of a requantization; None if the scales are equal, so that none is needed."""
    if q.scale_f32 == out_q.scale_f32:
        return None
    return fixed_point.fixed_point(f64(q.scale_f32) / f64(out_q.scale_f32), rounding)


def requantized(x_q: Values, q: QuantParams, out_q: QuantParams, rounding: Rounding) -> NDArray[np.int64]:
    """Requantizes integers from `q` to `out_q`, not clipped: fixed_point.multiply(x - zero_point, s / so) + zo."""
    centred, factor = np.asarray(x_q, np.int64) - q.zero_point, scale_factor(q, out_q, rounding)
    return (centred if factor is None else fixed_point.multiply(centred, factor)) + out_q.zero_point


def requantize_table(q: QuantParams, out_q: QuantParams, rounding: Rounding) -> NDArray:
    """Returns `requantized` for every integer of q's dtype, in ascending order, clipped to the output's range."""
    values = requantized(np.arange(q.quant_min, q.quant_max + 1), q, out_q, rounding)
    return np.clip(values, out_q.quant_min, out_q.quant_max).astype(out_q.dtype)


def add(
    a_q: Values, b_q: Values, params: tuple[QuantParams, QuantParams], out_q: QuantParams, *, relu: bool,
    rounding: Rounding,
) -> NDArray[np.int64]:  # fmt: skip
    """Returns clip(a' + b' - zo); max(., zo) if relu. a' and b' are the operands requantized to `out_q`."""
    a, b = (requantized(x, q, out_q, rounding) for x, q in zip((a_q, b_q), params, strict=True))
    y = np.clip(a + b - out_q.zero_point, out_q.quant_min, out_q.quant_max)
    return np.maximum(y, out_q.zero_point) if relu else y


def product_factor(a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, rounding: Rounding) -> FixedPoint:
    """Returns the factor fl(sa * sb) / so of (a - za) * (b - zb)."""
    scale = np.multiply(a_q.scale_f32, b_q.scale_f32, dtype=f32)
    return fixed_point.fixed_point(f64(scale) / f64(out_q.scale_f32), rounding)


def multiply(
    a_q: Values, b_q: Values, params: tuple[QuantParams, QuantParams], out_q: QuantParams, *, relu: bool,
    rounding: Rounding,
) -> NDArray[np.int64]:  # fmt: skip
    """Returns clip(fixed_point.multiply((a - za) * (b - zb), fl(sa*sb) / so) + zo); max(., zo) if relu."""
    first, second = (np.asarray(x, np.int64) - q.zero_point for x, q in zip((a_q, b_q), params, strict=True))
    y = fixed_point.multiply(first * second, product_factor(*params, out_q, rounding)) + out_q.zero_point
    y = np.clip(y, out_q.quant_min, out_q.quant_max)
    return np.maximum(y, out_q.zero_point) if relu else y


def clip_limits(limits: tuple[float, float], q: QuantParams) -> tuple[int, int]:
    """Returns the least and the greatest integer that a clip lets pass.

    Computes: clip(rne(zero_point + limit / scale)), in double precision.
    """
    low, high = np.clip(np.rint(q.zero_point + np.asarray(limits, f64) / q.scale), q.quant_min, q.quant_max)
    return int(low), int(high)


def average(total: Values, count: Values) -> NDArray[np.int64]:
    """Returns a pool's average, zero points not subtracted: total / count, rounded towards zero."""
    return fixed_point.divide(total, count, "towards_zero")


def unary_table(name: str, q_in: QuantParams, q_out: QuantParams, options: tuple[float, ...] = ()) -> NDArray:
    """Returns the results for all 256 integers x: `quantize(f(fl(scale * (x - zero_point))))`.

    Args:
        name: one of `ACTIVATIONS`.
        q_in: parameters of the input.
        q_out: parameters of the output.
        options: further numeric arguments of the function.
    """
    x_f32 = dequantize_val(np.arange(q_in.quant_min, q_in.quant_max + 1), q_in)
    return quantize(ACTIVATIONS[name].rounded_once(x_f32, options), q_out).astype(q_out.dtype)
