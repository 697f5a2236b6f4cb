"""float32 to integers and back: the first and the last kernel of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm.tirx.script.builder as T

from quantvm.numerics import QuantParams

from .arithmetic import dequantize_val, quantize_arr
from .builder import (
    Expr,
    Kernel,
    argument,
    cast,
    flat,
    flat_function,
    for_vectors,
    prim_func,
    ramp,
    symbolic_batch,
)


def quantize(item_shape: Sequence[int], q: QuantParams) -> Kernel:
    """Returns `torch.quantize_per_tensor` of (n, *item_shape) float32, in the same layout.

    Computes: clip(rne(fma(x, fl(1/scale), zero_point))), bit for bit as torch 2.13.
    """
    return _flat_map(
        "quantize_u8", item_shape, "float32", q.dtype, lambda x, k: cast(quantize_arr(x, q, k), q.dtype, k)
    )


def dequantize(item_shape: Sequence[int], q: QuantParams) -> Kernel:
    """Returns `Tensor.dequantize` of (n, *item_shape) integers: fl(scale * (x - zero_point)), bit for bit."""
    return _flat_map("dequantize_u8", item_shape, q.dtype, "float32", lambda x, k: dequantize_val(x, q, k))


def requantize_arr(item_shape: Sequence[int], q: QuantParams, out_q: QuantParams) -> Kernel:
    """Returns Q_ARR(D_VAL(x)) of (n, *item_shape): what `quantized::cat` does per input when one is contiguous."""

    def value(x: Expr, lanes: int) -> Expr:
        return cast(quantize_arr(dequantize_val(x, q, lanes), out_q, lanes), out_q.dtype, lanes)

    return _flat_map("requantize_u8", item_shape, q.dtype, out_q.dtype, value)


def quantize_nchw_to_nhwc(channels: int, height: int, width: int, q: QuantParams) -> Kernel:
    """Returns `torch.quantize_per_tensor` of (n, C, H, W) float32 as (n, H, W, C) integers."""
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, channels, height, width), "float32")
        y = argument("y", (n, height, width, channels), q.dtype)
        y_flat = flat(y, n * (height * width * channels))
        with T.parallel(0, n * height) as row:
            image, line = row // height, row % height

            def emit(column: Expr, lanes: int) -> None:
                for c in range(channels):
                    value = quantize_arr(x[image, c, line, ramp(column, lanes)], q, lanes)
                    at = (row * width + column) * channels + c
                    T.buffer_store(y_flat, cast(value, q.dtype, lanes), [ramp(at, lanes, channels)])

            for_vectors(width, emit)
    return Kernel("quantize_nchw_to_nhwc_u8", builder.get())


def _flat_map(
    name: str, item_shape: Sequence[int], in_dtype: str, out_dtype: str, value: Callable[[Expr, int], Expr]
) -> Kernel:
    count = math.prod(item_shape)
    rows = item_shape[0] if len(item_shape) > 1 else 1
    with flat_function(item_shape, (in_dtype,), out_dtype) as f:
        (x,) = f.inputs
        with T.parallel(0, f.n * rows) as row:
            base = row * (count // rows)

            def emit(at: Expr, lanes: int) -> None:
                index = ramp(base + at, lanes)
                T.buffer_store(f.output, value(x[index], lanes), [index])

            for_vectors(count // rows, emit)
    return Kernel(name, f.builder.get())
