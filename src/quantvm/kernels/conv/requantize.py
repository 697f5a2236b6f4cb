"""TIR form of `numerics.requantization.requantize`: int32 accumulators to quantized integers, as in each library."""

from __future__ import annotations

import numpy as np
from tvm import tirx

from quantvm.kernels.builder import LANES, Buffer, Expr, argument, cast, clamp, fma, ramp, round_even, rounded, splat
from quantvm.kernels.fixed_point import fixed_multiply
from quantvm.numerics.requantization import (
    FbgemmRequantization,
    IntegerRequantization,
    OnednnRequantization,
    QnnpackRequantization,
    Requantization,
)


class RequantizeEpilogue:
    """Declares a requantization's per-channel constants in the open PrimFunc and applies its formula to vectors.

    Args:
        r: the formula and its vectors.
        channels_padded: length that the per-channel vectors are padded to, a multiple of LANES.
        acc_bound: greatest |acc_i32| that can occur; it may prove that the float-to-int conversion cannot overflow.
        order: the channel whose constants each position of the vectors holds; by default, position c holds channel c.
    """

    def __init__(
        self, r: Requantization, channels_padded: int, acc_bound: int, order: np.ndarray | None = None
    ) -> None:
        self._r, self._padded, self._order = r, channels_padded, order
        self.output = r.output
        if isinstance(r, IntegerRequantization):
            shift = self._pad(r.factor.right_shift)
            self.constants: list[np.ndarray] = [self._pad(r.factor.scaled_multiplier), np.where(shift == 0, 1, shift)]
        elif isinstance(r, OnednnRequantization) and r.separate_up_to is not None:
            # multipliers for separate scales, then for combined ones; the first are omitted if no batch uses them
            ways = [r.weight_scales_f32] if r.separate_up_to else []
            self.constants = [np.concatenate([self._pad(way) for way in (*ways, r.combined_f32)])]
        elif isinstance(r, OnednnRequantization):
            self.constants = [self._pad(r.weight_scales_f32)]
        else:
            self.constants = [self._pad(r.multiplier_f32)]
        bias = r.bias_f32 if isinstance(r, (FbgemmRequantization, OnednnRequantization)) else r.bias_i32
        if bias is not None:
            self.constants.append(self._pad(bias))
        self.may_overflow = self._greatest(acc_bound) >= 2.0**31

    def _pad(self, vector: np.ndarray) -> np.ndarray:
        padded = np.zeros(self._padded, vector.dtype)
        if self._order is None:
            padded[: vector.size] = vector
        else:
            padded[: self._order.size] = vector[self._order]
        return padded

    def _greatest(self, acc_bound: int) -> float:
        """Returns an upper bound of the floats that are converted to int32."""
        r = self._r
        if isinstance(r, IntegerRequantization):
            return 0.0
        bias_of = r.bias_i32 if isinstance(r, QnnpackRequantization) else r.bias_f32
        bias = 0.0 if bias_of is None else np.abs(bias_of.astype(np.float64))
        if isinstance(r, OnednnRequantization):
            scale = np.abs(r.weight_scales_f32.astype(np.float64)) * float(r.source_scale_f32)
            return float(np.max((acc_bound * scale + bias) * float(r.inverse_destination_f32) * 1.001 + 256))
        if isinstance(r, FbgemmRequantization):
            bias = bias * float(r.bias_scale_f32 or 1)
        return float(np.max((acc_bound + bias) * np.abs(r.multiplier_f32.astype(np.float64)) * 1.001))

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest quantized value, considering the ReLU if there is one."""
        output = self._r.output
        return max(output.quant_min, output.zero_point) if self._r.relu else output.quant_min, output.quant_max

    @property
    def zero_included(self) -> bool:
        """Whether the result of `scaled` includes the output's zero point."""
        return isinstance(self._r, OnednnRequantization)

    def declare(self, n: Expr) -> None:
        """Adds the constants as arguments of the open PrimFunc of `n` images, in the order of `constants`."""
        if isinstance(self._r, OnednnRequantization) and self._r.separate_up_to:
            self._separate: Expr = n <= tirx.const(self._r.separate_up_to, "int64")
        names = ["multiplier", "right_shift", "bias"] if self.is_integer else ["multiplier", "bias"]
        views = {
            name: argument(name, vector.shape, str(vector.dtype))
            for name, vector in zip(names, self.constants, strict=False)
        }
        self._multiplier: Buffer = views["multiplier"]
        self._right_shift: Buffer = views.get("right_shift")
        self._bias: Buffer = views.get("bias")

    @property
    def is_integer(self) -> bool:
        """Whether the formula has no floats, so that `integers` replaces `scaled` and `real`."""
        return isinstance(self._r, IntegerRequantization)

    def integers(self, acc_i32: Expr, channel: Expr, lanes: int = LANES) -> Expr:
        """Returns the int32 value before adding the zero point and clipping; only if `is_integer`."""
        r, index = self._r, ramp(channel, lanes)
        assert isinstance(r, IntegerRequantization)
        if self._bias is not None:
            acc_i32 = acc_i32 + self._bias[index]
        return fixed_multiply(acc_i32, self._multiplier[index], self._right_shift[index], r.factor.rounding, lanes)

    def scaled(self, acc_i32: Expr, channel: Expr, lanes: int = LANES) -> Expr:
        """Returns the float32 value before it is rounded to an integer and clipped.

        For oneDNN it includes the zero point and the ReLU; for other libraries it does not.
        """
        r, index = self._r, ramp(channel, lanes)
        assert not isinstance(r, IntegerRequantization)
        if isinstance(r, OnednnRequantization):
            return self._scaled_by_onednn(r, cast(acc_i32, "float32", lanes), channel, lanes)
        if isinstance(r, QnnpackRequantization) and r.bias_i32 is not None:
            acc_i32 = acc_i32 + self._bias[index]
        v = cast(acc_i32, "float32", lanes)
        if isinstance(r, FbgemmRequantization) and r.bias_f32 is not None:
            if r.bias_scale_f32 is not None:
                v = fma(self._bias[index], splat(r.bias_scale_f32, lanes, "float32"), v, lanes)
            else:
                v = v + self._bias[index]
        return v * self._multiplier[index]

    def _scaled_by_onednn(self, r: OnednnRequantization, acc_f32: Expr, channel: Expr, lanes: int) -> Expr:
        def constant(value: object) -> Expr:
            return splat(value, lanes, "float32")

        v = self._real_f32(r, acc_f32, channel, lanes)
        v = v if r.bias_f32 is None else rounded(v, lanes) + self._bias[ramp(channel, lanes)]
        v = tirx.max(v, constant(0.0)) if r.relu else v
        v = v / constant(r.destination_scale_f32) if r.divides else v * constant(r.inverse_destination_f32)
        return rounded(v, lanes) + constant(float(r.output.zero_point))

    def _real_f32(self, r: OnednnRequantization, acc_f32: Expr, channel: Expr, lanes: int) -> Expr:
        """Returns the accumulators in real units, not yet rounded."""
        if r.separate_up_to is None:
            scaled = acc_f32 * splat(r.source_scale_f32, lanes, "float32")
            return rounded(scaled, lanes) * self._multiplier[ramp(channel, lanes)]
        if r.separate_up_to == 0:
            return acc_f32 * self._multiplier[ramp(channel, lanes)]
        # in batches with combined scales, the first multiplication is by 1, which is exact
        one, source = (tirx.const(float(value), "float32") for value in (1.0, r.source_scale_f32))
        scaled = acc_f32 * splat(tirx.Select(self._separate, source, one), lanes)
        zero, behind = (tirx.const(value, "int32") for value in (0, self._padded))
        way = tirx.Select(self._separate, zero, behind)
        return rounded(scaled, lanes) * self._multiplier[ramp(channel + way, lanes)]

    def real(self, acc_i32: Expr, channel: Expr, lanes: int = LANES) -> Expr:
        """Returns float32 integers inside the output dtype's range for channels channel..channel+lanes-1."""

        def constant(value: object) -> Expr:
            return splat(value, lanes, "float32")

        (low, high), zero = self.bounds, self._r.output.zero_point
        v = self.scaled(acc_i32, channel, lanes)
        if self.zero_included:
            # oneDNN clips before it rounds; the bounds are integers, so the order does not matter
            return clamp(round_even(v), constant(float(low)), constant(float(high)))
        v = round_even(v)
        if self.may_overflow:
            # cvtps2dq turns values that do not fit int32 into INT32_MIN, which is clipped to quant_min
            v = tirx.Select(v >= constant(2.0**31), constant(-32768.0), v)
        # Clamping before or after adding the zero point gives the same: both are exact below 2^24.
        return clamp(v, constant(float(low - zero)), constant(float(high - zero))) + constant(float(zero))

    def apply(self, acc_i32: Expr, channel: Expr, lanes: int = LANES) -> Expr:
        """Returns int32 values inside the output dtype's range for channels channel..channel+lanes-1."""
        if self.is_integer:
            (low, high), zero = self.bounds, self._r.output.zero_point
            value = self.integers(acc_i32, channel, lanes)
            # clipping before adding the zero point gives the same, and cannot overflow
            value = clamp(value, *(splat(bound - zero, lanes, "int32") for bound in (low, high)))
            return value + splat(zero, lanes, "int32")
        return cast(self.real(acc_i32, channel, lanes), "int32", lanes)


def padded_channels(channels: int) -> int:
    """Returns `channels` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES
