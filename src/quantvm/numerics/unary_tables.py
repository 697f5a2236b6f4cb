"""Operators of one quantized tensor as tables of 256 entries, under the arithmetic of PyTorch; see numerics.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.torch_engines import (
    F32,
    QuantParams,
    convert_to_int32,
    dequantize_val,
    dequantize_vec,
    quantize_arr,
    quantize_val,
    quantize_vec,
    reciprocal_f32,
    reciprocal_f64,
)

f32, f64, i64 = np.float32, np.float64, np.int64

_UNARY_F32: dict[str, Callable[[F32], F32]] = {}


def _unary(name: str) -> Callable[[Callable[[F32], F32]], Callable[[F32], F32]]:
    def register(function: Callable[[F32], F32]) -> Callable[[F32], F32]:
        _UNARY_F32[name] = function
        return function

    return register


@_unary("hardswish")
def hardswish_f32(x: F32) -> F32:
    """Returns fl(fl(x * min(max(fl(x+3), 0), 6)) / 6)."""
    gate = np.minimum(np.maximum(np.add(x, f32(3), dtype=f32), f32(0)), f32(6))
    return np.divide(np.multiply(x, gate, dtype=f32), f32(6), dtype=f32)


@_unary("hardsigmoid")
def hardsigmoid_f32(x: F32) -> F32:
    """Returns fl(min(max(fl(x+3), 0), 6) / 6)."""
    gate = np.minimum(np.maximum(np.add(x, f32(3), dtype=f32), f32(0)), f32(6))
    return np.divide(gate, f32(6), dtype=f32)


FLOAT_UNARY: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
"""Operators of float tensors that stand between dequantize and quantize, in double precision."""


def unary_tables(name: str, q_in: QuantParams, q_out: QuantParams, slope: float = 0.0) -> tuple[NDArray, NDArray]:
    """Returns two 256-entry tables, indexed by the input byte: for vectorised elements and for tail elements.

    A quantized unary operator is a pure function of the byte, so two tables reproduce it exactly.

    Args:
        name: hardswish, hardsigmoid, leaky_relu, sigmoid, tanh or an `elu_name`; or silu, gelu or gelu_tanh, which are
            computed on float tensors between dequantize and quantize.
        q_in: parameters of the input.
        q_out: parameters of the output.
        slope: negative slope, for leaky_relu only.

    Exactness: bit-exact to torch 2.13's kernels; sigmoid, tanh and those of float tensors up to the last bit of expf,
        tanhf and erff.
    """
    x_q = np.arange(256, dtype=i64) + q_in.quant_min
    dtype = np.dtype(q_out.dtype)
    vec, val = dequantize_vec(x_q, q_in), dequantize_val(x_q, q_in)
    if name in FLOAT_UNARY:
        entries = quantize_arr(FLOAT_UNARY[name](val.astype(f64)).astype(f32), q_out).astype(dtype)
        return entries, entries
    if name == "sigmoid":
        exp_f32 = np.exp(-val.astype(f64)).astype(f32)
        main_f32 = np.divide(f32(1), np.add(f32(1), exp_f32, dtype=f32), dtype=f32)
        tail_f32 = (1.0 / (1.0 + exp_f32.astype(f64))).astype(f32)
        inverse = reciprocal_f64(q_out.scale)
    elif name == "tanh":
        main_f32, tail_f32 = (np.tanh(v.astype(f64)).astype(f32) for v in (vec, val))
        inverse = reciprocal_f32(q_out.scale)
    elif name.startswith("elu "):
        main_f32, tail_f32 = (_elu_f32(v, name) for v in (vec, val))
        inverse = reciprocal_f64(q_out.scale)
    elif name == "leaky_relu":
        main_f32, tail_f32 = (np.multiply(v, np.where(v > 0, f32(1), f32(slope)), dtype=f32) for v in (vec, val))
        inverse = reciprocal_f32(q_out.scale)
    else:
        main_f32, tail_f32 = _UNARY_F32[name](vec), _UNARY_F32[name](val)
        inverse = reciprocal_f64(q_out.scale)
    return quantize_vec(main_f32, inverse, q_out).astype(dtype), quantize_val(tail_f32, q_out).astype(dtype)


def elu_name(alpha: float, scale: float, input_scale: float) -> str:
    """Returns the name of an elu with these factors, as `unary_tables` and `table_key` take it."""
    return f"elu {alpha!r} {scale!r} {input_scale!r}"


def elu_factors(name: str) -> tuple[float, float, float]:
    """Returns (alpha, scale, input_scale) of an `elu_name`."""
    alpha, scale, input_scale = (float(word) for word in name.split()[1:])
    return alpha, scale, input_scale


def _elu_f32(x: F32, name: str) -> F32:
    alpha, scale, input_scale = (f32(factor) for factor in elu_factors(name))
    curve = np.expm1(np.multiply(x, input_scale, dtype=f32).astype(f64)).astype(f32)
    return np.multiply(np.where(x > 0, x, np.multiply(curve, alpha, dtype=f32)), scale, dtype=f32)


def prelu_tables(q_in: QuantParams, weight: NDArray, q_weight: QuantParams, q_out: QuantParams) -> NDArray:
    """Returns (len(weight), 256) outputs of a PReLU with quantized slopes, for every input integer.

    Computes: 1 is quantized as a slope is, and saturates as one: acc = max(x - zi, 0) * (Q_VAL(1) - zw) +
        min(x - zi, 0) * (w - zw); clip(rne(fl(acc * fl(fl(si*sw) * fl(1/so)))) + zo). Where the slopes' scale is too
        small for 1, positive inputs come out smaller.
    Exactness: `quantized::prelu` of torch 2.13, bit for bit. Reference: QuantizedOpKernels.cpp `qprelu_out_kernel`.
    """
    x = np.arange(256, dtype=i64) + q_in.quant_min - q_in.zero_point
    one = int(quantize_val(f32(1), q_weight)) - q_weight.zero_point
    slopes = weight.astype(i64).reshape(-1, 1) - q_weight.zero_point
    acc = np.maximum(x, 0) * one + np.minimum(x, 0) * slopes
    product = np.multiply(q_in.scale_f32, q_weight.scale_f32, dtype=f32)
    factor = np.multiply(product, reciprocal_f32(q_out.scale), dtype=f32)
    y = convert_to_int32(np.multiply(acc.astype(f32), factor, dtype=f32)) + q_out.zero_point
    return np.clip(y, q_out.quant_min, q_out.quant_max).astype(q_out.dtype)


def table_key(name: str, q_in: QuantParams, q_out: QuantParams) -> str:
    """Returns the name under which a module carries PyTorch's own table of a unary operator."""
    sides = (f"{q.dtype}({q.scale!r}, {q.zero_point})" for q in (q_in, q_out))
    return f"{name} {' -> '.join(sides)}"


def qnnpack_table(name: str, q_in: QuantParams, q_out: QuantParams) -> NDArray:
    """Returns the 256-entry table that QNNPACK builds for hardswish, hardsigmoid or sigmoid.

    Computes: rne(clip(fl(fl(fl(1/so) * f(D_VAL(x))) + zo))).
    Exactness: torch 2.13, bit for bit; sigmoid up to the last bit of expf. Reference: qnnpack/src/hardswish.c.
    """
    x_f32 = dequantize_val(np.arange(256, dtype=i64), q_in)
    if name == "sigmoid":
        exp_f32 = np.exp(-x_f32.astype(f64)).astype(f32)
        y_f32 = np.divide(f32(1), np.add(f32(1), exp_f32, dtype=f32), dtype=f32)
    else:
        y_f32 = _UNARY_F32[name](x_f32)
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
    return np.clip(convert_to_int32(scaled) + q_out.zero_point, q_out.quant_min, q_out.quant_max).astype(q_out.dtype)
