"""TIR form of `numerics.requantize`: int32 accumulators to quantized integers, under each engine's rule."""

from __future__ import annotations

import numpy as np
from tvm import tirx

from quantvm.numerics import Requantization

from .builder import LANES, Buffer, Expr, argument, cast, clamp, fma, ramp, round_even, rounded, splat


class RequantizeEpilogue:
    """Declares a requantization's per-channel constants in the open PrimFunc and applies the rule to vectors.

    Args:
        r: the rule and its vectors.
        channels_padded: length that the per-channel vectors are padded to, a multiple of LANES.
        acc_bound: greatest |acc_i32| that can occur; proves that the float-to-int conversion cannot overflow.
    """

    def __init__(self, r: Requantization, channels_padded: int, acc_bound: int) -> None:
        self._r, self._padded = r, channels_padded
        self.constants: list[np.ndarray] = [self._pad(r.multiplier_f32)]
        if r.bias_f32 is not None:
            self.constants.append(self._pad(r.bias_f32))
        elif r.bias_i32 is not None:
            self.constants.append(self._pad(r.bias_i32))
        self._may_overflow = self._greatest(acc_bound) >= 2.0**31

    def _pad(self, vector: np.ndarray) -> np.ndarray:
        padded = np.zeros(self._padded, vector.dtype)
        padded[: vector.size] = vector
        return padded

    def _greatest(self, acc_bound: int) -> float:
        r = self._r
        bias = 0.0 if r.bias_f32 is None else np.abs(r.bias_f32.astype(np.float64)) * float(r.bias_scale_f32 or 1)
        bias = bias if r.bias_i32 is None else np.abs(r.bias_i32.astype(np.float64))
        return float(np.max((acc_bound + bias) * np.abs(r.multiplier_f32.astype(np.float64)) * 1.001))

    def declare(self) -> None:
        """Adds the constants as arguments of the open PrimFunc, in the order of `constants`."""
        self._multiplier: Buffer = argument("multiplier", (self._padded,), "float32")
        if len(self.constants) > 1:
            self._bias: Buffer = argument("bias", (self._padded,), str(self.constants[1].dtype))

    def apply(self, acc_i32: Expr, channel: Expr, lanes: int = LANES) -> Expr:
        """Returns int32 values inside the output dtype's range for channels channel..channel+lanes-1."""
        r, index = self._r, ramp(channel, lanes)

        def constant(value: object, dtype: str = "float32") -> Expr:
            return splat(value, lanes, dtype)

        low, high, zero = r.output.quant_min, r.output.quant_max, r.output.zero_point
        if r.bias_i32 is not None:
            acc_i32 = acc_i32 + self._bias[index]
        v = cast(acc_i32, "float32", lanes)
        if r.rule == "onednn":
            v = rounded(v * constant(r.source_scale_f32), lanes) * self._multiplier[index]
            v = v if r.bias_f32 is None else rounded(v, lanes) + self._bias[index]
            v = tirx.max(v, constant(0.0)) if r.relu else v
            v = rounded(v * constant(r.inverse_output_scale_f32), lanes) + constant(float(zero))
            v = clamp(v, constant(float(low)), constant(float(high)))
            return cast(round_even(v), "int32", lanes)
        if r.bias_f32 is not None:
            fused = r.bias_scale_f32 is not None
            scale = constant(r.bias_scale_f32) if fused else None
            v = fma(self._bias[index], scale, v, lanes) if fused else v + self._bias[index]
        v = round_even(v * self._multiplier[index])
        if self._may_overflow:
            # cvtps2dq turns what does not fit int32 into INT32_MIN, which ends at quant_min
            v = tirx.Select(v >= constant(2.0**31), constant(-32768.0), v)
        # Clamping the float integer before the zero point is added equals clamping after: both are exact below 2^24.
        low = max(low, zero) if r.relu else low
        v = clamp(v, constant(float(low - zero)), constant(float(high - zero)))
        return cast(v, "int32", lanes) + constant(zero, "int32")


def padded_channels(channels: int) -> int:
    """Returns `channels` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES
