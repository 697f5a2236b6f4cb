"""Batch and layer normalization of quantized tensors as PyTorch computes them, in NumPy."""

from __future__ import annotations

import numpy as np

from quantvm.numerics.torch_engines import (
    F32,
    I64,
    QuantParams,
    Values,
    convert_to_int32,
    f32,
    f64,
    fma_f32,
    i64,
    quantize_val,
    quantize_vec,
    reciprocal_f32,
)


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
        y = fma(a, gamma, beta); quantize_vec for the first n//32*32 elements of a row, quantize_val for the others.
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
