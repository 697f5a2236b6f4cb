"""The exact arithmetic of PyTorch's quantized CPU operators, in NumPy. Its rounding is defined only here.

All values are IEEE binary32 and every operation rounds to nearest even, unless a docstring says otherwise. A scale is
stored as a double by PyTorch and cast to float32 by every kernel; `QuantParams` holds that float32.

PyTorch has three quantizers and two dequantizers, which differ on ties (docs/numerics.md says which operator uses
which): `quantize_vec`/`dequantize_vec` in the vectorised loops of element-wise kernels, `quantize_val`/`dequantize_val`
in their scalar tails, `quantize_arr` in `torch.quantize_per_tensor`. The TIR kernels are tested against the functions
here. The per-channel vectors that kernels consume are computed here too; tables are computed in unary_tables.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Values = Any
"""Numbers, or an array of any numeric dtype."""
Library = Literal["fbgemm", "onednn", "qnnpack"]
"""Libraries by which PyTorch computes convolutions and matrix products; the engine x86 uses the first two."""

_LARGEST_BELOW_2_31 = f32(2147483520.0)


@dataclass(frozen=True)
class QuantParams:
    """Affine quantization of one tensor: real = scale * (quantized - zero_point).

    Attributes:
        scale: a float32 number, as kernels see it.
        zero_point: an integer of the dtype.
        dtype: dtype of the integers.
    """

    scale: float
    zero_point: int
    dtype: Literal["uint8", "int8"] = "uint8"

    def __post_init__(self) -> None:
        if not (0 < self.scale <= np.finfo(f32).max and f32(self.scale) > 0):
            raise ValueError(f"scale must be a positive, finite float32, got {self.scale}")
        if self.dtype not in ("uint8", "int8"):
            raise ValueError(f"dtype must be uint8 or int8, got {self.dtype}")
        if not self.quant_min <= self.zero_point <= self.quant_max:
            raise ValueError(f"zero_point {self.zero_point} lies outside of {self.dtype}")

    @property
    def quant_min(self) -> int:
        """Least integer of the dtype."""
        return 0 if self.dtype == "uint8" else -128

    @property
    def quant_max(self) -> int:
        """Greatest integer of the dtype."""
        return 255 if self.dtype == "uint8" else 127

    @classmethod
    def of_torch(cls, scale_f64: float, zero_point: int, dtype: Literal["uint8", "int8"] = "uint8") -> QuantParams:
        """Returns the parameters of a tensor for which PyTorch stores this scale."""
        params = cls(float(f32(scale_f64)), zero_point, dtype)
        # Not a field: files, reports and comparisons are about the scale that kernels see.
        object.__setattr__(params, "_scale_f64", scale_f64)
        return params

    @property
    def torch_scale(self) -> float:
        """The scale as PyTorch stores it with the tensor, in double precision.

        An operator between the tensor and a number derives the scale of its result from it.
        """
        return float(getattr(self, "_scale_f64", self.scale))

    @property
    def scale_f32(self) -> np.float32:
        """The scale as every kernel sees it."""
        return f32(self.scale)


# ------------------------------------------------------------------ float32 with one rounding per operation


def fma_f32(a: Values, b: Values, c: Values) -> F32:
    """Returns a*b + c rounded once to float32.

    Computes: the product of two float32 is exact in float64; the float64 sum is rounded to odd, so that the second
    rounding to float32 cannot err.
    """
    a64, b64, c64 = np.broadcast_arrays(*(np.asarray(v, f64) for v in (a, b, c)))
    product = a64 * b64
    total = product + c64
    rest = total - product
    error = (product - (total - rest)) + (c64 - rest)
    is_even = (np.ascontiguousarray(total).view(i64).reshape(total.shape) & 1) == 0
    odd = np.where(error > 0, np.nextafter(total, np.inf), np.nextafter(total, -np.inf))
    return np.where((error != 0) & is_even & np.isfinite(total), odd, total).astype(f32)


def reciprocal_f32(scale: Values) -> np.float32:
    """Returns 1.0f / (float)scale, rounded once."""
    return np.divide(f32(1), np.asarray(scale).astype(f32), dtype=f32)


def reciprocal_f64(scale: float) -> np.float32:
    """Returns (float)(1.0 / scale), the division in double."""
    return f32(1.0 / float(scale))


def convert_to_int32(x: Values, rounding: RoundingMode = "even") -> I64:
    """Rounds to integers; NaN and values that do not fit int32 become INT32_MIN, as in x86's cvtps2dq."""
    rounded = round_to_integers(x, rounding)
    fits = (rounded < 2.0**31) & (rounded >= -(2.0**31))
    return np.where(fits, rounded, -(2.0**31)).astype(i64)


# ------------------------------------------------------------------ quantizers and dequantizers

RoundingMode = Literal["even", "away", "upward", "down", "towards_zero"]
"""To the nearest integer, halves to even, away from zero or upward; or always down or towards zero."""
ZeroPointPlace = Literal["after", "before", "dropped"]
"""Whether the zero point is added after rounding, before it (with a rounding of its own), or not at all."""


def round_to_integers(x: Values, mode: RoundingMode = "even") -> NDArray[np.float64]:
    """Returns x rounded to integers."""
    x = np.asarray(x, f64)
    if mode == "even":
        return np.rint(x)
    if mode == "away":
        return fixed_point.round_away(x)
    if mode == "upward":
        return np.floor(x + 0.5)
    return np.floor(x) if mode == "down" else np.trunc(x)


def integers_of(
    steps_f32: Values, q: QuantParams, *, rounding: RoundingMode = "even", zero_point: ZeroPointPlace = "after",
    saturates: bool = False,
) -> I64:  # fmt: skip
    """Returns the quantized integers of float32 values x that are given in steps of the output, without zero point.

    Computes: clip(int32(round(x)) + zero_point), or clip(int32(round(fl(x + zero_point)))). Values that do not fit
        int32 become INT32_MIN, as in x86's cvtps2dq, or the nearest int32 with `saturates`; NaN becomes INT32_MIN.
    """
    if zero_point == "before":
        steps_f32 = np.add(steps_f32, f32(q.zero_point), dtype=f32)
    if saturates:
        steps_f32 = np.minimum(steps_f32, _LARGEST_BELOW_2_31)
    y = convert_to_int32(steps_f32, rounding)
    return np.clip(y + q.zero_point if zero_point == "after" else y, q.quant_min, q.quant_max)


def quantize_fma(x_f32: Values, factor: Values, q: QuantParams, rounding: RoundingMode = "even") -> I64:
    """Returns clip(round(fma(x, factor, zero_point))): zero point added before rounding, one rounding."""
    return integers_of(
        fma_f32(x_f32, factor, f32(q.zero_point)), q, rounding=rounding, zero_point="dropped", saturates=True
    )


def quantize_vec(x_f32: Values, inverse_scale: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fl(x * inverse_scale)) + zero_point): zero point added after rounding.

    Exactness: ATen `Vectorized<c10::quint8>::quantize` (ATen/cpu/vec/vec256/vec256_qint.h), bit for bit.
    """
    return integers_of(np.multiply(x_f32, inverse_scale, dtype=f32), q, saturates=True)


def quantize_val(x_f32: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fl(fl(x * fl(1/scale)) + zero_point))): zero point added before rounding, two roundings.

    Exactness: `at::native::quantize_val` and every scalar tail, bit for bit.
    """
    with np.errstate(over="ignore"):  # an overflow saturates, like any other large value
        steps = np.multiply(x_f32, reciprocal_f32(q.scale), dtype=f32)
    return integers_of(steps, q, zero_point="before", saturates=True)


def quantize_arr(x_f32: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fma(x, fl(1/scale), zero_point))): zero point added before rounding, one rounding.

    Exactness: `fbgemm::QuantizeAvx2`, which `torch.quantize_per_tensor` calls, bit for bit.
    """
    return quantize_fma(x_f32, reciprocal_f32(q.scale), q)


def dequantize_vec(x_q: Values, q: QuantParams) -> F32:
    """Returns fma(scale, x, fl(scale * -zero_point)), as in ATen's vectorised loops."""
    return fma_f32(q.scale_f32, x_q, np.multiply(q.scale_f32, f32(-q.zero_point), dtype=f32))


def dequantize_val(x_q: Values, q: QuantParams) -> F32:
    """Returns fl(scale * (x - zero_point)), subtracting integers, as in scalar tails and `Tensor.dequantize`."""
    return np.multiply(q.scale_f32, (np.asarray(x_q, i64) - q.zero_point).astype(f32), dtype=f32)


# ------------------------------------------------------------------ a quantized tensor and a number


def add_scalar(q: QuantParams, number: float) -> tuple[QuantParams, int]:
    """Returns PyTorch's parameters of x + number, and the number in steps of x, c = rne(number / s).

    Computes: (s, z - c) if z - c fits the dtype; else the limit of the dtype that it exceeds, and s enlarged so that
    all sums fit, in double precision. Reference: ATen/native/quantized/cpu/BinaryOps.cpp `_add_scalar_out`.
    """
    scale = q.torch_scale
    steps = int(np.rint(f64(number) / f64(scale)))
    shifted, span = q.zero_point - steps, q.quant_max - q.quant_min
    if shifted < q.quant_min:
        return QuantParams.of_torch((q.quant_max - shifted) / span * scale, q.quant_min, q.dtype), steps
    if shifted > q.quant_max:
        return QuantParams.of_torch((shifted - q.quant_min) / span * scale, q.quant_max, q.dtype), steps
    return QuantParams.of_torch(scale, shifted, q.dtype), steps


def mul_scalar(q: QuantParams, number: float) -> QuantParams:
    """Returns PyTorch's parameters of x * number: (s*|number|, z); z mirrored if number < 0; (1, 0) for zero.

    The integers stay the same, or are mirrored: min + max - x. The scale is a product in double precision.
    """
    if number == 0:
        return QuantParams(1.0, 0, q.dtype)
    zero_point = q.zero_point if number > 0 else q.quant_max + q.quant_min - q.zero_point
    return QuantParams.of_torch(abs(float(number)) * q.torch_scale, zero_point, q.dtype)
