"""Quantize and dequantize, usually the first and the last kernel of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels import x86
from quantvm.kernels.arithmetic import dequantize_val, quantize_arr
from quantvm.kernels.builder import (
    LANES,
    Buffer,
    Expr,
    Kernel,
    argument,
    cast,
    flat,
    flat_function,
    for_vectors,
    prim_func,
    ramp,
    rounded,
    splat,
    symbolic_batch,
)
from quantvm.kernels.float import program_emitter
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.numerics.qdq import Quantization
from quantvm.numerics.torch_engines import QuantParams


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
    """Returns Q_ARR(D_VAL(x)) of (n, *item_shape), as `quantized::cat` requantizes inputs if one is contiguous."""

    def value(x: Expr, lanes: int) -> Expr:
        return cast(quantize_arr(dequantize_val(x, q, lanes), out_q, lanes), out_q.dtype, lanes)

    return _flat_map("requantize_u8", item_shape, q.dtype, out_q.dtype, value)


def quantize_nchw_to_nhwc(
    channels: int, height: int, width: int, q: QuantParams, isa: Isa = PLAIN,
    affine: tuple[np.ndarray, np.ndarray] | None = None, under: Quantization | None = None,
) -> Kernel:  # fmt: skip
    """Returns `torch.quantize_per_tensor` of (n, C, H, W) float32 as (n, H, W, C) integers.

    With `affine`, (C,) float32 factors and terms, fl(fl(x*factor) + term) is quantized. With `under`, the formula is
    that of `numerics.qdq.quantize`.
    """

    def integers(value: Expr, lanes: int) -> Expr:
        return quantize_arr(value, q, lanes) if under is None else program_emitter.quantize(value, under, lanes)

    func = nchw_to_nhwc(channels, height, width, q.dtype, integers, affine, packs=isa.packs)
    name = "quantize" if affine is None else "quantize_affine"
    return Kernel(f"{name}_nchw_to_nhwc_u8", func)


def nchw_to_nhwc(
    channels: int, height: int, width: int, dtype: str, integers: Callable[[Expr, int], Expr],
    affine: tuple[np.ndarray, np.ndarray] | None = None, *, packs: bool = False,
) -> tirx.PrimFunc:  # fmt: skip
    """Returns a function that takes (n, C, H, W) float32 and stores integers as (n, H, W, C).

    Args:
        channels: C.
        height: H.
        width: W.
        dtype: dtype of the integers.
        integers: (float32 vector, lanes) -> int32 vector in the range of `dtype`.
        affine: (C,) float32 factors and terms; fl(fl(x*factor) + term) is quantized.
        packs: whether the target has the instructions for `x86.pack_to_bytes`.
    """
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, channels, height, width), "float32")
        y = argument("y", (n, height, width, channels), dtype)
        y_flat = flat(y, n * (height * width * channels))
        with T.parallel(0, n * height) as row:
            image, line = row // height, row % height

            def value(c: Any, column: Expr, lanes: int) -> Expr:
                real = x[image, c, line, ramp(column, lanes)]
                if affine is not None:
                    factor, term = (splat(vector[c], lanes, "float32") for vector in affine)
                    real = rounded(real * factor, lanes) + term
                return integers(real, lanes)

            def store(c: Any, column: Expr, lanes: int, value_i32: Expr) -> None:
                at = (row * width + column) * channels + c
                T.buffer_store(y_flat, cast(value_i32, dtype, lanes), [ramp(at, lanes, channels)])

            def emit(column: Expr, lanes: int) -> None:
                values = [value(c, column, lanes) for c in range(channels)]
                if packs and channels == _RGB and lanes == LANES:
                    _store_pixels(y_flat, (row * width + column) * channels, values, dtype)
                    return
                for c, value_i32 in enumerate(values):
                    store(c, column, lanes, value_i32)

            if channels <= _UNROLLED_CHANNELS or affine is not None:
                for_vectors(width, emit)
            else:
                with T.serial(0, channels) as c:
                    for_vectors(width, lambda column, lanes: store(c, column, lanes, value(c, column, lanes)))
    return builder.get()


_RGB = 3
_UNROLLED_CHANNELS = 8
"""Maximum number of channels to unroll; a feature map after a float operator can have hundreds."""


def _store_pixels(y: Buffer, at: Expr, planes_i32: list[Expr], dtype: str) -> None:
    """Emits the store of 16 pixels of three interleaved channels; the values fit the dtype."""
    packed = x86.pack_to_bytes([*planes_i32, planes_i32[0]], 0, dtype, LANES)
    order = [16 * (pixel // 4) + 4 * c + pixel % 4 for pixel in range(LANES) for c in range(_RGB)]
    for start, count in ((0, 32), (32, 16)):
        T.buffer_store(y, x86.shuffle([packed], order[start : start + count]), [ramp(at + start, count)])


def chosen_by_batch(item_shape: Sequence[int], dtype: str) -> Kernel:
    """Returns the first of two (n, *item_shape) tensors if n is 1, else the second."""
    with flat_function(item_shape, (dtype, dtype), dtype) as f:
        one, several = f.inputs
        with T.parallel(0, f.n) as image, T.serial(0, math.prod(item_shape)) as at:
            index = image * math.prod(item_shape) + at
            T.buffer_store(f.output, tirx.if_then_else(f.n == 1, one[index], several[index]), [index])
    return Kernel("chosen_by_batch", f.builder.get())


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
