"""float32 to integers and back: the first and the last kernel of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm.tirx.script.builder as T

from quantvm.numerics import QuantParams

from .arithmetic import dequantize_val, quantize_arr
from .builder import (
    Expr,
    Kernel,
    argument,
    cast,
    flat,
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


def _flat_map(name: str, item_shape: Sequence[int], in_dtype: str, out_dtype: str, value: object) -> Kernel:
    count = math.prod(item_shape)
    rows = item_shape[0] if len(item_shape) > 1 else 1
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), in_dtype)
        y = argument("y", (n, *item_shape), out_dtype)
        x_flat, y_flat = flat(x, n * count), flat(y, n * count)
        with T.parallel(0, n * rows) as row:
            base = row * (count // rows)

            def emit(at: Expr, lanes: int) -> None:
                index = ramp(base + at, lanes)
                T.buffer_store(y_flat, value(x_flat[index], lanes), [index])  # type: ignore[operator]

            for_vectors(count // rows, emit)
    return Kernel(name, builder.get())
