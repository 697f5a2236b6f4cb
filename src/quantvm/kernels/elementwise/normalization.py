"""Batch and layer normalization of integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm.tirx.script.builder as T

from quantvm.kernels.arithmetic import quantize_val, quantize_vec
from quantvm.kernels.builder import (
    Buffer,
    Expr,
    Kernel,
    argument,
    cast,
    flat,
    fma,
    for_vectors,
    local,
    prim_func,
    ramp,
    rounded,
    splat,
    symbolic_batch,
)
from quantvm.numerics.normalization import LAYER_NORM_BLOCK
from quantvm.numerics.torch_engines import QuantParams, f32, reciprocal_f32

MAX_NORMALIZED = 32768
"""Maximum number of elements in a normalized row, so that sum(x*x) <= 32768 * 255^2 < 2^31."""


def batch_norm(
    item_shape: Sequence[int], alpha: np.ndarray, beta: np.ndarray, q_in: QuantParams, q_out: QuantParams, *, relu: bool
) -> Kernel:
    """Returns batch normalization of (n, ..., C) integers.

    Computes: clip(rne(fma(alpha, x - zi, beta)) + zo); relu: max(., zo).
    Exactness: `quantized::batch_norm2d`, `quantized::batch_norm2d_relu` of torch 2.13, bit for bit.
    """
    channels, pixels = item_shape[-1], math.prod(item_shape[:-1])
    rows = item_shape[0] if len(item_shape) > 1 else 1
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), q_in.dtype)
        factors = argument("alpha", (channels,), "float32")
        terms = argument("beta", (channels,), "float32")
        y = argument("y", (n, *item_shape), q_out.dtype)
        numel = n * (pixels * channels)
        x_flat, y_flat = flat(x, numel), flat(y, numel)
        with T.parallel(0, n * rows) as row, T.serial(0, pixels // rows) as pixel:
            base = (row * (pixels // rows) + pixel) * channels

            def emit(at: Expr, lanes: int) -> None:
                index, channel = ramp(base + at, lanes), ramp(at, lanes)
                centred = cast(
                    cast(x_flat[index], "int32", lanes) - splat(q_in.zero_point, lanes, "int32"), "float32", lanes
                )
                value = quantize_vec(fma(factors[channel], centred, terms[channel], lanes), f32(1), q_out, lanes)
                value = T.max(value, splat(q_out.zero_point, lanes, "int32")) if relu else value
                T.buffer_store(y_flat, cast(value, q_out.dtype, lanes), [index])

            for_vectors(channels, emit)
    return Kernel("batch_norm_relu_u8" if relu else "batch_norm_u8", builder.get(), (alpha, beta))


def layer_norm(
    item_shape: Sequence[int], gamma: np.ndarray, beta: np.ndarray, eps: float, q_in: QuantParams, q_out: QuantParams
) -> Kernel:
    """Returns layer normalization of (n, ..., *gamma.shape) integers over the last dimensions.

    Computes: as `numerics.layer_norm`.
    Exactness: `quantized::layer_norm` of torch 2.13, bit for bit; rows of at most MAX_NORMALIZED elements.
    """
    length = gamma.size
    rows = math.prod(item_shape) // length
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), q_in.dtype)
        factors, terms = argument("gamma", (length,), "float32"), argument("beta", (length,), "float32")
        y = argument("y", (n, *item_shape), q_out.dtype)
        numel = n * (rows * length)
        x_flat, y_flat = flat(x, numel), flat(y, numel)
        with T.parallel(0, n * rows) as row:
            base = row * length
            mean, scale = _statistics(x_flat, base, length, eps, q_in)

            def store(at: Expr, lanes: int, is_tail: bool) -> None:
                index, element = ramp(base + at, lanes), ramp(at, lanes)
                centred = cast(
                    cast(x_flat[index], "int32", lanes) - splat(q_in.zero_point, lanes, "int32"), "float32", lanes
                )
                normal = (centred - splat(mean[0], lanes)) * splat(scale[0], lanes)
                real = fma(normal, factors[element], terms[element], lanes)
                if is_tail:
                    value = quantize_val(real, q_out, lanes)
                else:
                    value = quantize_vec(real, reciprocal_f32(q_out.scale), q_out, lanes)
                T.buffer_store(y_flat, cast(value, q_out.dtype, lanes), [index])

            main = length // LAYER_NORM_BLOCK * LAYER_NORM_BLOCK
            for_vectors(main, lambda at, lanes: store(at, lanes, False))
            for_vectors(length - main, lambda at, lanes: store(at + main, lanes, True))
    constants = (np.ascontiguousarray(gamma.reshape(-1)), np.ascontiguousarray(beta.reshape(-1)))
    return Kernel("layer_norm_u8", builder.get(), constants)


def _statistics(x: Buffer, base: Expr, length: int, eps: float, q: QuantParams) -> tuple[Buffer, Buffer]:
    """Emits the mean of a row, zero point subtracted, and the factor by which its elements are multiplied."""
    total, squares = local(1, "int32"), local(1, "int32")
    T.buffer_store(total, 0, [0])
    T.buffer_store(squares, 0, [0])
    with T.serial(0, length) as at:
        value = cast(x[base + at], "int32", 1)
        T.buffer_store(total, total[0] + value, [0])
        T.buffer_store(squares, squares[0] + value * value, [0])
    mean, factor = local(1, "float32"), local(1, "float32")
    count, scale = splat(float(length), 1, "float32"), splat(q.scale_f32, 1, "float32")
    T.buffer_store(mean, cast(total[0], "float32", 1) / count, [0])
    mean_square = cast(squares[0], "float32", 1) / count
    variance = T.max(fma(-mean[0], mean[0], mean_square, 1), splat(0.0, 1, "float32"))
    real = rounded(rounded(variance * scale, 1) * scale, 1)
    root = T.sqrt(cast(real, "float64", 1) + splat(float(eps), 1, "float64"))
    T.buffer_store(factor, cast(cast(scale, "float64", 1) / root, "float32", 1), [0])
    T.buffer_store(mean, mean[0] - splat(float(q.zero_point), 1, "float32"), [0])
    return mean, factor
