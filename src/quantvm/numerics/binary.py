"""Sums, products and concatenations of quantized tensors as PyTorch's engines compute them, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.torch_engines import (
    F32,
    I64,
    QuantParams,
    Values,
    dequantize_val,
    dequantize_vec,
    f32,
    f64,
    i64,
    integers_of,
    quantize_val,
    quantize_vec,
    reciprocal_f32,
    reciprocal_f64,
)

Pair = tuple[QuantParams, QuantParams]


def sum_of(a_f32: Values, b_f32: Values, *, relu: bool) -> F32:
    """Returns fl(a + b); max(., 0) if relu."""
    total = np.add(a_f32, b_f32, dtype=f32)
    return np.maximum(total, f32(0)) if relu else total


def add(
    a_q: Values, b_q: Values, params: Pair, out_q: QuantParams, *, relu: bool, vectorised: NDArray[np.bool_]
) -> I64:
    """Returns the quantized sum a + b.

    Computes: Q_VEC(sum_of(D_VEC(a), D_VEC(b))) for vectorised elements, the same with Q_VAL and D_VAL for the others.
    Exactness: `quantized::add`, `quantized::add_relu` of torch 2.13, bit for bit.
    """
    first, second = params
    main = sum_of(dequantize_vec(a_q, first), dequantize_vec(b_q, second), relu=relu)
    tail = sum_of(dequantize_val(a_q, first), dequantize_val(b_q, second), relu=relu)
    return np.where(vectorised, quantize_vec(main, reciprocal_f32(out_q.scale), out_q), quantize_val(tail, out_q))


def centred_product(a_q: Values, b_q: Values, params: Pair) -> F32:
    """Returns fl((a - za) * (b - zb)), which is exact."""
    first, second = (np.asarray(x, i64) - q.zero_point for x, q in zip((a_q, b_q), params, strict=True))
    return (first * second).astype(f32)


def product_multiplier(params: Pair, out_q: QuantParams) -> np.float32:
    """Returns fl(fl(sa*sb) * fl(1/so))."""
    scale = np.multiply(params[0].scale_f32, params[1].scale_f32, dtype=f32)
    return np.multiply(scale, reciprocal_f32(out_q.scale), dtype=f32)


def multiply(a_q: Values, b_q: Values, params: Pair, out_q: QuantParams, *, relu: bool) -> I64:
    """Returns the quantized product a * b.

    Computes: clip(rne(fl((a-za)*(b-zb) * product_multiplier)) + zo); relu: max(., zo).
    Exactness: `quantized::mul`, `quantized::mul_relu` of torch 2.13, bit for bit.
    """
    steps = np.multiply(centred_product(a_q, b_q, params), product_multiplier(params, out_q), dtype=f32)
    y = integers_of(steps, out_q)
    return np.maximum(y, out_q.zero_point) if relu else y


def concatenated(x_q: Values, q: QuantParams, out_q: QuantParams) -> tuple[I64, I64]:
    """Requantizes an input of a channels-last concatenation: as vectorised elements, and as scalar tails.

    Computes: Q_VEC(D_VEC(x), (float)(1.0/so)), and Q_VAL(D_VAL(x)).
    Exactness: `quantized::cat` of torch 2.13, bit for bit.
    """
    main = quantize_vec(dequantize_vec(x_q, q), reciprocal_f64(out_q.scale), out_q)
    return main, quantize_val(dequantize_val(x_q, q), out_q)


# ------------------------------------------------------------------ QNNPACK's addition


@dataclass(frozen=True)
class QnnpackAdd:
    """QNNPACK's addition: acc = (a-za)*a_multiplier + (b-zb)*b_multiplier, shifted right, ties away from zero."""

    a_multiplier: int
    b_multiplier: int
    shift: int


def qnnpack_add(a_q: QuantParams, b_q: QuantParams, out_q: QuantParams) -> QnnpackAdd:
    """Returns the 22-bit multipliers and the shift of QNNPACK's addition.

    Reference: qnnpack/src/qnnpack/requantization.h. The ratios of the scales must lie in [2^-14, 2^8);
    PyTorch demands it too.

    Raises:
        ValueError: a ratio lies outside of that range.
    """
    ratios = [np.divide(q.scale_f32, out_q.scale_f32, dtype=f32) for q in (a_q, b_q)]
    if min(ratios) < 2.0**-14 or max(ratios) >= 2.0**8:
        raise ValueError(f"scale ratios {[float(r) for r in ratios]} of an addition lie outside of [2^-14, 2^8)")
    shift = 21 - int(np.floor(np.log2(f64(max(ratios)))))
    a_multiplier, b_multiplier = (int(np.rint(f64(r) * 2.0**shift)) for r in ratios)
    return QnnpackAdd(a_multiplier, b_multiplier, shift)


def add_by_qnnpack(a_q: Values, b_q: Values, params: Pair, out_q: QuantParams, *, relu: bool) -> I64:
    """Returns QNNPACK's quantized sum: clip(acc / 2^shift + zo), halves away from zero; max(., zo) if relu.

    Exactness: `quantized::add` of torch 2.13 under the engine qnnpack, bit for bit.
    """
    factors, (first, second) = qnnpack_add(*params, out_q), params
    acc = (np.asarray(a_q, i64) - first.zero_point) * factors.a_multiplier
    acc = acc + (np.asarray(b_q, i64) - second.zero_point) * factors.b_multiplier
    steps = np.sign(acc) * ((np.abs(acc) + (i64(1) << (factors.shift - 1))) >> factors.shift)
    y = np.clip(steps + out_q.zero_point, out_q.quant_min, out_q.quant_max)
    return np.maximum(y, out_q.zero_point) if relu else y
