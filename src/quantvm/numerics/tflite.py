"""TFLite's own rounding, in NumPy, where it differs from the QDQ form: reductions, division, requantization.

A TFLite file gives the quantization of an operator's inputs and outputs; TFLite's kernels define how it rounds. This
module follows the reference kernels (`tensorflow/lite/kernels/internal/reference`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point
from quantvm.numerics.torch_engines import QuantParams, Values


@dataclass(frozen=True)
class TfliteFactor:
    """A real factor multiplier * 2^(shift - 31), as `QuantizeMultiplier` makes it.

    Attributes:
        multiplier: below 2^31.
        shift: positive to the left.
    """

    multiplier: int
    shift: int


def factor_of(real: float) -> TfliteFactor:
    """Returns the fixed-point form of a factor: 31 bits, ties away from zero."""
    factor = fixed_point.fixed_point(real)
    return TfliteFactor(int(factor.multiplier), int(factor.shift))


def multiply(x: Values, factor: TfliteFactor) -> NDArray[np.int64]:
    """Returns x * factor, rounded twice.

    Computes: `MultiplyByQuantizedMultiplier`: h = round(x * 2^max(shift, 0) * multiplier / 2^31), halves upward; then
        h / 2^max(-shift, 0), halves away from zero.
    """
    high = _high(np.asarray(x, np.int64) << max(factor.shift, 0), factor.multiplier)
    return _rounded_right(high, max(-factor.shift, 0))


def average(total: Values, count: Values) -> NDArray[np.int64]:
    """Returns AVERAGE_POOL_2D's average, zero points not subtracted: total / count, halves away from zero."""
    return fixed_point.divide(total, count, "away")


def mean_factor(q: QuantParams, out_q: QuantParams, count: int) -> TfliteFactor:
    """Returns the factor by which MEAN multiplies the sum of `count` integers, zero points subtracted.

    Computes: the factor s / so, with its multiplier replaced by multiplier * 2^k / count, rounded down; k is the
        greatest with 2^k <= count.
    """
    factor = scale_factor(q, out_q)
    bits = min(count.bit_length() - 1, 32, 31 + factor.shift)
    return TfliteFactor((factor.multiplier << bits) // count, factor.shift - bits)


def mean(total: Values, count: int, q: QuantParams, out_q: QuantParams) -> NDArray[np.int64]:
    """Returns MEAN of `count` integers; `total` is their sum, zero points subtracted."""
    y = multiply(total, mean_factor(q, out_q, count)) + out_q.zero_point
    return np.clip(y, out_q.quant_min, out_q.quant_max)


def total(summed: Values, count: int, q: QuantParams, out_q: QuantParams) -> NDArray[np.int64]:
    """Returns SUM of `count` integers; `summed` is their sum, zero points subtracted.

    Computes: for uint8, `summed` times s / so in fixed point. For int8, which the reference kernel misreads as uint8,
        the optimized kernel's float32 formula: fl(fl(stored * (s / so)) + bias), halves away from zero, where `stored`
        is the sum with the zero points not subtracted and bias comes from `sum_factor`.
    """
    if q.dtype == "int8":
        ratio, bias = sum_factor(q, out_q, count)
        stored = (np.asarray(summed, np.int64) + count * q.zero_point).astype(np.float32)
        real = np.add(np.multiply(stored, ratio, dtype=np.float32), bias, dtype=np.float32)
        y = fixed_point.round_away(real).astype(np.int64)
    else:
        y = multiply(summed, scale_factor(q, out_q))
    return np.clip(y + out_q.zero_point, out_q.quant_min, out_q.quant_max)


def sum_factor(q: QuantParams, out_q: QuantParams, count: int) -> tuple[np.float32, np.float32]:
    """Returns s / so in float32, and fl(fl(-z * (s / so)) * count)."""
    ratio = np.divide(q.scale_f32, out_q.scale_f32, dtype=np.float32)
    one = np.multiply(np.float32(-q.zero_point), ratio, dtype=np.float32)
    return ratio, np.multiply(one, np.float32(count), dtype=np.float32)


def requantize(x: Values, q: QuantParams, out_q: QuantParams) -> NDArray[np.int64]:
    """Returns QUANTIZE of integers, which requantizes them from `q` to `out_q`."""
    y = multiply(np.asarray(x, np.int64) - q.zero_point, scale_factor(q, out_q)) + out_q.zero_point
    return np.clip(y, out_q.quant_min, out_q.quant_max)


def quotient_factor(q: QuantParams, divisor_q: QuantParams, out_q: QuantParams) -> TfliteFactor:
    """Returns the factor of DIV: s / (sd * so), its product and its quotient rounded to float32."""
    steps = np.multiply(divisor_q.scale_f32, out_q.scale_f32, dtype=np.float32)
    return factor_of(float(np.divide(q.scale_f32, steps, dtype=np.float32)))


def quotients(
    q: QuantParams, divisor_q: QuantParams, out_q: QuantParams, low: int, high: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns DIV of all pairs of integers, and where it is defined; (256, 256), indexed by value - `quant_min`.

    Computes: `DivElementwise`: a fixed-point reciprocal of the divisor times the dividend, both of 31 bits, times
        `quotient_factor`, limited to [low, high].
    Exactness: bit for bit where TFLite's kernels are defined. If a quotient is less than half a step, they can shift by
        more than 31 bits, which is undefined in C++; here the result is 0, the rounded real quotient. They refuse a
        divisor of 0; here the result is `low` or `high`, by the sign of the dividend.
    """
    factor = quotient_factor(q, divisor_q, out_q)
    dividend = (np.arange(256) + q.quant_min - q.zero_point)[:, None]
    divisor = (np.arange(256) + divisor_q.quant_min - divisor_q.zero_point)[None, :]
    a, b = dividend * np.where(divisor < 0, -1, 1), np.abs(divisor)
    inverse, bits = np.array([_reciprocal(int(value)) if value else (0, 0) for value in b[0]], np.int64).T
    free = 31 - np.frexp(np.where(a < 0, -a - 1, a))[1].astype(np.int64)  # leading bits that equal the sign
    unscaled = _high(a << free, inverse)
    right = bits + free - factor.shift
    is_defined = (right >= 0) & (right <= 31)
    scaled = _rounded_right(_high(unscaled, np.int64(factor.multiplier)), np.where(is_defined, right, 0))
    y = np.where(is_defined, scaled, np.where(right < 0, np.sign(a) << 32, 0))
    y = np.where(b == 0, np.sign(dividend) << 32, y)
    return np.clip(y + out_q.zero_point, low, high), is_defined | (b == 0)


def _reciprocal(x: int) -> tuple[int, int]:
    """Returns 1 / x as (multiplier, bits): multiplier / 2^(31 + bits), by Newton's method in 32 bits."""
    bits = x.bit_length() - 1
    half = x << (30 - bits)  # x / 2^(bits + 1), in [0.5, 1), with 31 fractional bits
    inverse = 1515870810 + int(_high(half, -1010580540))  # 48/17 - 32/17 * half, with 29 fractional bits
    for _ in range(3):
        rest = (1 << 29) - int(_high(half, inverse))
        inverse += _saturated(int(_high(inverse, rest)) << 2)
    return _saturated(inverse << 1), bits


def _saturated(x: int) -> int:
    return max(min(x, (1 << 31) - 1), -(1 << 31))


def _high(x: Values, y: Values) -> NDArray[np.int64]:
    """Returns x * y / 2^31 in 32 bits, halves upward."""
    product = np.asarray(x, np.int64) * np.asarray(y, np.int64)
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.sign(nudged) * (np.abs(nudged) >> 31)


def _rounded_right(x: Values, bits: Values) -> NDArray[np.int64]:
    """Returns x / 2^bits, halves away from zero."""
    mask = (np.int64(1) << np.asarray(bits, np.int64)) - 1
    return (x >> bits) + ((x & mask) > (mask >> 1) + (x < 0))


def scale_factor(q: QuantParams, out_q: QuantParams) -> TfliteFactor:
    """Returns the factor s / so, which turns steps of one tensor into steps of the other."""
    return factor_of(float(q.scale_f32) / float(out_q.scale_f32))
