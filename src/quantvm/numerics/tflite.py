"""TFLite's own rounding, in NumPy, where it is not that of the QDQ form: averages, means and changes of parameters.

A TFLite file says between which integers an operator computes; how it rounds is its kernels' definition, of which the
reference kernels (`tensorflow/lite/kernels/internal/reference`) are the measure here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .torch_engines import QuantParams

Values = Any
"""Numbers, or an array of any numeric dtype."""


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
    significand, shift = math.frexp(real)
    multiplier = math.floor(significand * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return TfliteFactor(multiplier, shift) if shift >= -31 else TfliteFactor(0, 0)


def multiply(x: Values, factor: TfliteFactor) -> NDArray[np.int64]:
    """Returns integers times a factor, rounded twice.

    Computes: `MultiplyByQuantizedMultiplier`: h = round(x * 2^max(shift, 0) * multiplier / 2^31), halves upward; then
        h / 2^max(-shift, 0), halves away from zero.
    """
    product = (np.asarray(x, np.int64) << max(factor.shift, 0)) * factor.multiplier
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    right = max(-factor.shift, 0)
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def average(total: Values, count: Values) -> NDArray[np.int64]:
    """Returns AVERAGE_POOL_2D's average of integers as they are stored: total / count, halves away from zero."""
    total, count = np.asarray(total, np.int64), np.asarray(count, np.int64)
    return np.sign(total) * ((np.abs(total) + count // 2) // count)


def mean_factor(q: QuantParams, out_q: QuantParams, count: int) -> TfliteFactor:
    """Returns the factor by which MEAN multiplies a sum of `count` integers less their zero points.

    Computes: that of s / so, its multiplier * 2^k / count rounded down, k the greatest with 2^k <= count.
    """
    factor = _scales(q, out_q)
    bits = min(count.bit_length() - 1, 32, 31 + factor.shift)
    return TfliteFactor((factor.multiplier << bits) // count, factor.shift - bits)


def mean(total: Values, count: int, q: QuantParams, out_q: QuantParams) -> NDArray[np.int64]:
    """Returns MEAN of `count` integers whose sum, less their zero points, is `total`."""
    y = multiply(total, mean_factor(q, out_q, count)) + out_q.zero_point
    return np.clip(y, out_q.quant_min, out_q.quant_max)


def requantize(x: Values, q: QuantParams, out_q: QuantParams) -> NDArray[np.int64]:
    """Returns QUANTIZE of integers: the same values under other parameters."""
    y = multiply(np.asarray(x, np.int64) - q.zero_point, _scales(q, out_q)) + out_q.zero_point
    return np.clip(y, out_q.quant_min, out_q.quant_max)


def _scales(q: QuantParams, out_q: QuantParams) -> TfliteFactor:
    return factor_of(float(q.scale_f32) / float(out_q.scale_f32))
