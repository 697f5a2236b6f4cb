"""The exact arithmetic of PyTorch's quantized CPU operators, in NumPy. The one place where rounding is defined.

All values are IEEE binary32 and every operation rounds to nearest even, unless a docstring says otherwise. A scale is
stored as a double by PyTorch and cast to float32 by every kernel; `QuantParams` holds that float32.

PyTorch has three quantizers and two dequantizers, which differ on ties (docs/numerics.md says which operator uses
which): `quantize_vec`/`dequantize_vec` in the vectorised loops of element-wise kernels, `quantize_val`/`dequantize_val`
in their scalar tails, `quantize_arr` in `torch.quantize_per_tensor`. The functions here are the reference that the TIR
kernels are tested against; the per-channel vectors that kernels consume are computed here too, tables in
unary_tables.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point
from quantvm.numerics.fixed_point import FixedPoint

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Values = Any
"""Numbers, or an array of any numeric dtype."""
Numerics = Literal["torch", "qdq", "integer"]
"""torch: the bits of a PyTorch engine. qdq: float32 between dequantize and quantize (qdq_numerics.py). integer: no
float between quantize and dequantize (integer_numerics.py)."""
Engine = Literal["fbgemm", "x86", "onednn", "qnnpack"]
Rule = Literal["fbgemm", "onednn", "qnnpack", "integer"]
"""Whose arithmetic takes accumulators to outputs: a library's inside of PyTorch, or fixed point."""
ENGINES: tuple[Engine, ...] = ("fbgemm", "x86", "onednn", "qnnpack")

VEC_BLOCK = 64
"""Elements per step of PyTorch's vectorised element-wise loops (two AVX2 registers of bytes); the rest is scalar."""

GRAIN_SIZE = 32768
"""Elements below which PyTorch's TensorIterator does not split a loop over threads."""

_LARGEST_BELOW_2_31 = f32(2147483520.0)


@dataclass(frozen=True)
class QuantParams:
    """Affine quantization of one tensor: real = scale * (quantized - zero_point)."""

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


def convert_to_int32(x: Values) -> I64:
    """Rounds to nearest even; what does not fit int32 becomes INT32_MIN, as x86's cvtps2dq does."""
    rounded = np.rint(np.asarray(x, f64))
    fits = (rounded < 2.0**31) & (rounded >= -(2.0**31))
    return np.where(fits, rounded, -(2.0**31)).astype(i64)


# ------------------------------------------------------------------ quantizers and dequantizers


def quantize_vec(x_f32: Values, inverse_scale: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fl(x * inverse_scale)) + zero_point): zero point added after rounding.

    Exactness: ATen `Vectorized<c10::quint8>::quantize` (ATen/cpu/vec/vec256/vec256_qint.h), bit for bit.
    """
    scaled = np.minimum(np.multiply(x_f32, inverse_scale, dtype=f32), _LARGEST_BELOW_2_31)
    return np.clip(convert_to_int32(scaled) + q.zero_point, q.quant_min, q.quant_max)


def quantize_val(x_f32: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fl(fl(x * fl(1/scale)) + zero_point))): zero point added before rounding, two roundings.

    Exactness: `at::native::quantize_val` and every scalar tail, bit for bit.
    """
    with np.errstate(over="ignore"):  # saturates, like any other large value
        scaled = np.multiply(x_f32, reciprocal_f32(q.scale), dtype=f32)
    rounded = np.rint(np.add(scaled, f32(q.zero_point), dtype=f32).astype(f64))
    return np.clip(rounded, q.quant_min, q.quant_max).astype(i64)


def quantize_arr(x_f32: Values, q: QuantParams) -> I64:
    """Returns clip(rne(fma(x, fl(1/scale), zero_point))): zero point added before rounding, one rounding.

    Exactness: `fbgemm::QuantizeAvx2`, which `torch.quantize_per_tensor` calls, bit for bit.
    """
    scaled = np.minimum(fma_f32(x_f32, reciprocal_f32(q.scale), f32(q.zero_point)), _LARGEST_BELOW_2_31)
    return np.clip(convert_to_int32(scaled), q.quant_min, q.quant_max)


def dequantize_vec(x_q: Values, q: QuantParams) -> F32:
    """Returns fma(scale, x, fl(scale * -zero_point)), as ATen's vectorised loops do."""
    return fma_f32(q.scale_f32, x_q, np.multiply(q.scale_f32, f32(-q.zero_point), dtype=f32))


def dequantize_val(x_q: Values, q: QuantParams) -> F32:
    """Returns fl(scale * (x - zero_point)), the subtraction in integers, as scalar tails and `Tensor.dequantize` do."""
    return np.multiply(q.scale_f32, (np.asarray(x_q, i64) - q.zero_point).astype(f32), dtype=f32)


def vectorised_cut(numel: int, threads: int = 1) -> NDArray[np.bool_]:
    """Returns which of `numel` flat elements PyTorch's element-wise loops vectorise; the others are scalar tails.

    A range of at least GRAIN_SIZE elements is cut into equal pieces, one a thread, and each piece has its own tail
    (aten/src/ATen/TensorIterator.cpp `for_each`, Parallel-inl.h `parallel_for`).
    """
    piece = vectorised_piece(numel, threads)
    position = np.arange(numel) % piece
    length = np.minimum(piece, numel - np.arange(numel) // piece * piece)
    return position < length // VEC_BLOCK * VEC_BLOCK


def vectorised_piece(numel: int, threads: int) -> int:
    """Returns the number of elements in each thread's piece of an element-wise loop over `numel` elements."""
    if numel < GRAIN_SIZE or threads == 1:
        return max(numel, 1)
    pieces = min(threads, -(-numel // GRAIN_SIZE))
    return -(-numel // pieces)


# ------------------------------------------------------------------ a quantized tensor and a number


def add_scalar(q: QuantParams, number: float) -> tuple[QuantParams, int]:
    """Returns the parameters that PyTorch gives x + number, and the number in steps of x, c = rne(number / s).

    Computes: (s, z - c) where z - c fits the dtype; else the end of the dtype that it passes, and s stretched so that
    all sums fit. Reference: ATen/native/quantized/cpu/BinaryOps.cpp `_add_scalar_out`.
    """
    steps = int(np.rint(f64(number) / f64(q.scale)))
    shifted, span = q.zero_point - steps, q.quant_max - q.quant_min
    if shifted < q.quant_min:
        return QuantParams(float(f32((q.quant_max - shifted) / span * q.scale)), q.quant_min, q.dtype), steps
    if shifted > q.quant_max:
        return QuantParams(float(f32((shifted - q.quant_min) / span * q.scale)), q.quant_max, q.dtype), steps
    return QuantParams(q.scale, shifted, q.dtype), steps


def mul_scalar(q: QuantParams, number: float) -> QuantParams:
    """Returns the parameters that PyTorch gives x * number: (s*|number|, z), z mirrored below zero; (1, 0) for zero.

    The integers stay as they are, or are mirrored: min + max - x.
    """
    if number == 0:
        return QuantParams(1.0, 0, q.dtype)
    zero_point = q.zero_point if number > 0 else q.quant_max + q.quant_min - q.zero_point
    return QuantParams(float(f32(abs(float(number)) * q.scale)), zero_point, q.dtype)


# ------------------------------------------------------------------ QNNPACK's own element-wise operators and pools


@dataclass(frozen=True)
class FixedPointAdd:
    """QNNPACK's addition: acc = (a-za)*a_multiplier + (b-zb)*b_multiplier, shifted right, ties away from zero."""

    a_multiplier: int
    b_multiplier: int
    shift: int


def qnnpack_add(a_q: QuantParams, b_q: QuantParams, out_q: QuantParams) -> FixedPointAdd:
    """Returns the 22-bit multipliers and the shift that QNNPACK adds with.

    Reference: qnnpack/src/qnnpack/requantization.h. The ratios of the scales must lie in [2^-14, 2^8), as PyTorch
    demands too.

    Raises:
        ValueError: they do not.
    """
    ratios = [np.divide(q.scale_f32, out_q.scale_f32, dtype=f32) for q in (a_q, b_q)]
    if min(ratios) < 2.0**-14 or max(ratios) >= 2.0**8:
        raise ValueError(f"scale ratios {[float(r) for r in ratios]} of an addition are outside of [2^-14, 2^8)")
    shift = 21 - int(np.floor(np.log2(f64(max(ratios)))))
    a_multiplier, b_multiplier = (int(np.rint(f64(r) * 2.0**shift)) for r in ratios)
    return FixedPointAdd(a_multiplier, b_multiplier, shift)


def qnnpack_pool_multiplier(scale: float, count: int) -> np.float32:
    """Returns fl(s / fl(s * count)), which QNNPACK multiplies the sum over a window of `count` elements with."""
    return np.divide(f32(scale), np.multiply(f32(scale), f32(count), dtype=f32), dtype=f32)


# ------------------------------------------------------------------ convolution and linear


@dataclass(frozen=True)
class Requantization:
    """Per-channel vectors that turn an exact int32 accumulator into a quantized output.

    Attributes:
        rule: which engine's formula applies; see `requantize`.
        multiplier_f32: (C,) float32. fbgemm, qnnpack: combined scale; onednn: weight scale; integer: about `fixed`.
        bias_f32: (C,) float32 or None. fbgemm per-channel: fl(bias / (sa*sw)); else the float bias.
        bias_scale_f32: fbgemm per-tensor weights: (float)(1.0 / (sa*sw)), applied by FMA; else None.
        bias_i32: (C,) int32, qnnpack and integer only: added to the accumulator.
        source_scale_f32, inverse_output_scale_f32: onednn only.
        separate_up_to: onednn only. Batches of more images are multiplied by `combined_f32` in place of the input's
            and the weight's scale one after the other, as AMX kernels do; None: none are.
        combined_f32: (C,) float32 products of the two scales, where `separate_up_to` is not None.
        output_scale_f32: onednn's plain C++ code only: divided by, in place of multiplying by its reciprocal.
        fixed: (C,) factors, integer only.
    """

    rule: Rule
    multiplier_f32: F32
    bias_f32: F32 | None
    output: QuantParams
    relu: bool
    bias_scale_f32: np.float32 | None = None
    bias_i32: NDArray[np.int32] | None = None
    source_scale_f32: Any = None
    inverse_output_scale_f32: Any = None
    separate_up_to: int | None = None
    combined_f32: F32 | None = None
    output_scale_f32: Any = None
    fixed: FixedPoint | None = None


def requantization(
    rule: Rule,
    kind: Literal["conv", "linear"],
    *,
    input_q: QuantParams,
    weight_scales: NDArray[np.float64],
    bias_f32: F32 | None,
    output_q: QuantParams,
    relu: bool,
    channels: int,
    separate_up_to: int | None = None,
    divides: bool = False,
) -> Requantization:
    """Returns the vectors of the requantization that `rule` defines.

    Args:
        rule: from `conv_rule` or `linear_rule`.
        kind: conv or linear; oneDNN treats their weight scales differently.
        input_q: parameters of the activation.
        weight_scales: (C,) for per-channel weights, (1,) for per-tensor ones.
        bias_f32: (C,) or None.
        output_q: parameters of the output.
        relu: whether a ReLU follows.
        channels: C, the number of output channels.
        separate_up_to: under onednn on a CPU with AMX, see `Requantization` and onednn_amx.py; 0 on one without VNNI.
        divides: under onednn without VNNI, see `onednn_avx2_refuses`.

    Exactness: docs/numerics.md, section on convolution and linear.
    """
    per_tensor = weight_scales.size == 1
    weight_scales_f32 = weight_scales.astype(f32)
    scale_in = input_q.scale_f32

    def per_channel(values: NDArray) -> F32:
        return np.ascontiguousarray(np.broadcast_to(values.astype(f32), (channels,)))

    if rule == "fbgemm":
        product = np.multiply(scale_in, weight_scales_f32, dtype=f32)
        multiplier = per_channel(np.divide(product, output_q.scale_f32, dtype=f32))
        if bias_f32 is None or not per_tensor:
            bias = None if bias_f32 is None else np.divide(bias_f32, product, dtype=f32)
            return Requantization("fbgemm", multiplier, bias, output_q, relu)
        return Requantization(
            "fbgemm", multiplier, bias_f32, output_q, relu, bias_scale_f32=reciprocal_f64(float(product[0]))
        )
    if rule == "onednn":
        weights = weight_scales_f32
        if kind == "linear":
            inverse = 1.0 / (weight_scales if per_tensor else weights.astype(f64))
            weights = np.divide(f32(1), inverse.astype(f32), dtype=f32)
        source = reciprocal_f32(reciprocal_f64(input_q.scale))
        destination = reciprocal_f32(reciprocal_f64(output_q.scale))
        combined = None if separate_up_to is None else per_channel(np.multiply(source, weights, dtype=f32))
        return Requantization(
            "onednn", per_channel(weights), bias_f32, output_q, relu,
            source_scale_f32=source, inverse_output_scale_f32=reciprocal_f32(destination),
            separate_up_to=separate_up_to, combined_f32=combined, output_scale_f32=destination if divides else None,
        )  # fmt: skip
    multiplier = per_channel(
        np.multiply(np.multiply(weight_scales_f32, scale_in, dtype=f32), reciprocal_f32(output_q.scale), dtype=f32)
    )
    bias_i32 = None
    if bias_f32 is not None:
        bias_scale = np.divide(f32(1), (weight_scales * input_q.scale).astype(f32), dtype=f32)
        bias_i32 = np.rint(np.multiply(bias_f32, bias_scale, dtype=f32).astype(f64)).astype(i32)
    return Requantization("qnnpack", multiplier, None, output_q, relu, bias_i32=bias_i32)


def requantize(acc_i32: Values, r: Requantization) -> I64:
    """Returns the quantized output of exact accumulators; the first axis is the batch's, the last the channels'.

    Computes:
        fbgemm: v = fl(acc); v = fl(v + bias) or fma(bias, bias_scale, v); clip(cvt(fl(v*multiplier)) + z);
            max(z) if relu
        onednn: v = fl(fl(acc*sa) * sw), in larger batches than separate_up_to fl(acc * fl(sa*sw)); v = fl(v + bias);
            max(0) if relu; rne(clip(fl(fl(v*inv_so) + z))), in its plain C++ code fl(v/so)
        qnnpack: v = fl(acc + bias_i32); clip(cvt(fl(v*multiplier)) + z); max(z) if relu
        integer: clip(fixed_point.multiply(acc + bias_i32, fixed) + z); max(z) if relu

    Exactness: bit-exact to the three libraries inside torch 2.13, and to TVM 0.16's QNN (docs/numerics.md).
    """
    acc, q = np.asarray(acc_i32, i64), r.output
    if r.bias_i32 is not None:
        acc = acc + r.bias_i32
    if r.fixed is not None:
        y = np.clip(fixed_point.multiply(acc, r.fixed) + q.zero_point, q.quant_min, q.quant_max)
        return np.maximum(y, q.zero_point) if r.relu else y
    v: Values = acc.astype(f32)
    if r.rule == "onednn":
        if r.separate_up_to is not None and r.combined_f32 is not None and len(v) > r.separate_up_to:
            v = np.multiply(v, r.combined_f32, dtype=f32)
        else:
            v = np.multiply(np.multiply(v, r.source_scale_f32, dtype=f32), r.multiplier_f32, dtype=f32)
        v = v if r.bias_f32 is None else np.add(v, r.bias_f32, dtype=f32)
        v = np.maximum(v, f32(0)) if r.relu else v
        if r.output_scale_f32 is not None:
            v = np.divide(v, r.output_scale_f32, dtype=f32)
        else:
            v = np.multiply(v, r.inverse_output_scale_f32, dtype=f32)
        v = np.add(v, f32(q.zero_point), dtype=f32)
        return np.rint(np.clip(v, f32(q.quant_min), f32(q.quant_max)).astype(f64)).astype(i64)
    if r.bias_f32 is not None:
        fused = r.bias_scale_f32 is not None
        v = fma_f32(r.bias_f32, r.bias_scale_f32, v) if fused else np.add(v, r.bias_f32, dtype=f32)
    rounded = np.clip(convert_to_int32(np.multiply(v, r.multiplier_f32, dtype=f32)), -32768, 32767)
    y = np.clip(np.clip(rounded + q.zero_point, -32768, 32767), q.quant_min, q.quant_max)
    return np.maximum(y, q.zero_point) if r.relu else y


# ------------------------------------------------------------------ normalizations


def batch_norm_affine(weight: F32, bias: F32, mean: F32, variance: F32, eps: float) -> tuple[F32, F32]:
    """Returns (C,) factors fl(r*w) and terms fl(b - fl(fl(mean*r)*w)) with r = fl(1 / sqrt(fl(var + eps))).

    Reference: ATen/native/quantized/cpu/Normalization.cpp `compute_fused_params`.
    """
    root = np.sqrt(np.add(variance, f32(eps), dtype=f32), dtype=f32)
    inverse = np.divide(f32(1), root, dtype=f32)
    shift = np.multiply(np.multiply(mean, inverse, dtype=f32), weight, dtype=f32)
    return np.multiply(inverse, weight, dtype=f32), np.subtract(bias, shift, dtype=f32)


def batch_norm_params(factors: F32, terms: F32, q_in: QuantParams, q_out: QuantParams) -> tuple[F32, F32]:
    """Returns `batch_norm_affine` in quantization steps: (float)(factor * (si/so)), (float)(term / so), in double."""
    ratio = f64(q_in.scale) / f64(q_out.scale)
    return (factors.astype(f64) * ratio).astype(f32), (terms.astype(f64) / f64(q_out.scale)).astype(f32)


def batch_norm(x_q: Values, alpha: F32, beta: F32, q_in: QuantParams, q_out: QuantParams, *, relu: bool) -> I64:
    """Returns quantized batch normalization of integers with the channel axis last.

    Computes: clip(rne(fma(alpha, x - zi, beta)) + zo); relu: max(., zo).
    Exactness: `quantized::batch_norm2d`, `quantized::batch_norm2d_relu` of torch 2.13, bit for bit.
    """
    y_f32 = fma_f32(alpha, (np.asarray(x_q, i64) - q_in.zero_point).astype(f32), beta)
    low = max(q_out.quant_min, q_out.zero_point) if relu else q_out.quant_min
    return np.clip(convert_to_int32(y_f32) + q_out.zero_point, low, q_out.quant_max)


LAYER_NORM_BLOCK = 32
"""Elements per step of PyTorch's vectorised loop over a normalized row; the rest of the row is scalar."""


def layer_norm(x_q: Values, gamma: F32, beta: F32, eps: float, q_in: QuantParams, q_out: QuantParams) -> I64:
    """Returns quantized layer normalization of (rows, n) integers.

    Computes: m = fl(fl(sum(x)) / n); mean = fl(m - zi); var = max(fma(-m, m, fl(fl(sum(x*x)) / n)), 0);
        r = (float)(si / sqrt((double)fl(fl(var*si)*si) + eps)); a = fl(fl((x - zi) - mean) * r);
        y = fma(a, gamma, beta); the first n//32*32 of a row by quantize_vec, the others by quantize_val.
    Exactness: `quantized::layer_norm` of torch 2.13, bit for bit. Reference: QuantizedOpKernels.cpp
        `quantized_normalize_kernel`.
    """
    x = np.asarray(x_q, i64)
    n = x.shape[-1]
    scale = q_in.scale_f32
    m = np.divide(x.sum(-1, keepdims=True).astype(f32), f32(n), dtype=f32)
    squares = np.divide((x * x).sum(-1, keepdims=True).astype(f32), f32(n), dtype=f32)
    mean = np.subtract(m, f32(q_in.zero_point), dtype=f32)
    variance = np.maximum(fma_f32(-m, m, squares), f32(0))
    real = np.multiply(np.multiply(variance, scale, dtype=f32), scale, dtype=f32)
    factor = (f64(scale) / np.sqrt(real.astype(f64) + eps)).astype(f32)
    centred = np.subtract((x - q_in.zero_point).astype(f32), mean, dtype=f32)
    y_f32 = fma_f32(np.multiply(centred, factor, dtype=f32), gamma, beta)
    main = quantize_vec(y_f32, reciprocal_f32(q_out.scale), q_out)
    is_main = np.arange(n) < n // LAYER_NORM_BLOCK * LAYER_NORM_BLOCK
    return np.where(is_main, main, quantize_val(y_f32, q_out))
