"""Operators of one quantized tensor as tables of 256 entries, in PyTorch's arithmetic; see torch_engines.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.torch_engines import (
    QuantParams,
    dequantize_val,
    dequantize_vec,
    f32,
    f64,
    i64,
    integers_of,
    quantize_arr,
    quantize_val,
    quantize_vec,
    reciprocal_f32,
    reciprocal_f64,
)


def unary_tables(
    name: str, q_in: QuantParams, q_out: QuantParams, options: tuple[float, ...] = ()
) -> tuple[NDArray, NDArray]:
    """Returns two 256-entry tables, indexed by the input byte: for vectorised elements and for tail elements.

    A quantized unary operator is a pure function of the byte, so two tables reproduce it exactly.

    Args:
        name: one of `ACTIVATIONS`.
        q_in: parameters of the input.
        q_out: parameters of the output.
        options: further numeric arguments of the function.

    Exactness: bit-exact to torch 2.13's kernels; for functions that are not exact in float32, up to the last bit of
        PyTorch's vectorised expf and the like.
    """
    activation = ACTIVATIONS[name]
    kernel, dtype = activation.kernel, np.dtype(q_out.dtype)
    x_q = np.arange(256, dtype=i64) + q_in.quant_min
    val = dequantize_val(x_q, q_in)
    if kernel is None:
        entries = quantize_arr(activation.rounded_once(val, options), q_out).astype(dtype)
        return entries, entries
    vec = dequantize_vec(x_q, q_in) if kernel.dequantize == "fma" else val
    main_f32 = activation.rounded_alone(vec, options)
    tail_f32 = activation.rounded_alone(val, options) if kernel.tail is None else kernel.tail(val)
    inverse = (reciprocal_f64 if kernel.reciprocal == "float64" else reciprocal_f32)(q_out.scale)
    return quantize_vec(main_f32, inverse, q_out).astype(dtype), quantize_val(tail_f32, q_out).astype(dtype)


def prelu_tables(q_in: QuantParams, weight: NDArray, q_weight: QuantParams, q_out: QuantParams) -> NDArray:
    """Returns (len(weight), 256) outputs of a PReLU with quantized slopes, for every input integer.

    Computes: acc = max(x - zi, 0) * (Q_VAL(1) - zw) + min(x - zi, 0) * (w - zw);
        clip(rne(fl(acc * fl(fl(si*sw) * fl(1/so)))) + zo). The 1 is quantized like a slope and saturates like one: if
        the slopes' scale is too small for 1, positive inputs come out smaller.
    Exactness: `quantized::prelu` of torch 2.13, bit for bit. Reference: QuantizedOpKernels.cpp `qprelu_out_kernel`.
    """
    x = np.arange(256, dtype=i64) + q_in.quant_min - q_in.zero_point
    one = int(quantize_val(f32(1), q_weight)) - q_weight.zero_point
    slopes = weight.astype(i64).reshape(-1, 1) - q_weight.zero_point
    acc = np.maximum(x, 0) * one + np.minimum(x, 0) * slopes
    product = np.multiply(q_in.scale_f32, q_weight.scale_f32, dtype=f32)
    factor = np.multiply(product, reciprocal_f32(q_out.scale), dtype=f32)
    steps = np.multiply(acc.astype(f32), factor, dtype=f32)
    return integers_of(steps, q_out).astype(q_out.dtype)


def table_key(name: str, options: tuple[float, ...], q_in: QuantParams, q_out: QuantParams) -> str:
    """Returns the key under which a module stores PyTorch's own table of a unary operator."""
    sides = (f"{q.dtype}({q.scale!r}, {q.zero_point})" for q in (q_in, q_out))
    return f"{' '.join((name, *map(repr, options)))} {' -> '.join(sides)}"


def qnnpack_table(name: str, q_in: QuantParams, q_out: QuantParams) -> NDArray:
    """Returns the 256-entry table that QNNPACK builds for a function for which it has a kernel.

    Computes: rne(clip(fl(fl(fl(1/so) * f(D_VAL(x))) + zo))).
    Exactness: torch 2.13, bit for bit; sigmoid up to the last bit of expf. Reference: qnnpack/src/hardswish.c.
    """
    y_f32 = ACTIVATIONS[name].rounded_alone(dequantize_val(np.arange(256, dtype=i64), q_in))
    scaled = np.multiply(reciprocal_f32(q_out.scale), y_f32, dtype=f32)
    shifted = np.add(scaled, f32(q_out.zero_point), dtype=f32)
    return np.rint(np.clip(shifted, f32(0), f32(255)).astype(f64)).astype(np.uint8)


def add_scalar_table(q_in: QuantParams, steps: int, q_out: QuantParams) -> NDArray:
    """Returns the 256 outputs of x + number: clip(rne(fl((x - z + steps) * fl(si * fl(1/so)))) + zo).

    Exactness: `quantized::add` of torch 2.13 with a number, bit for bit.
    """
    x = np.arange(256, dtype=i64) + q_in.quant_min
    factor = np.multiply(q_in.scale_f32, reciprocal_f32(q_out.scale), dtype=f32)
    scaled = np.multiply((x - q_in.zero_point + steps).astype(f32), factor, dtype=f32)
    return integers_of(scaled, q_out).astype(q_out.dtype)
