"""Concatenation of quantized tensors along channels, each requantized to the output's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder as T

from quantvm.numerics import QuantParams, reciprocal_f64

from .arithmetic import dequantize_val, dequantize_vec, quantize_val, quantize_vec
from .builder import Expr, Kernel, argument, cast, flat, for_vectors, prim_func, ramp, symbolic_batch
from .staging import copy_flat

_VEC_CHANNELS = 8


def concat_nhwc(
    pixels: tuple[int, int], channels: Sequence[int], inputs: Sequence[QuantParams], out_q: QuantParams
) -> Kernel:
    """Returns `quantized::cat` along channels of channels-last tensors: (n, H, W, C_i) -> (n, H, W, sum C_i).

    Computes: an input with the output's parameters is copied; of another one, the first C//8*8 channels go through
        Q_VEC(D_VEC(x), (float)(1.0/scale)) and the others through Q_VAL(D_VAL(x)).
    Exactness: torch 2.13 with all inputs channels-last, bit for bit.
    """
    height, width = pixels
    total = sum(channels)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        xs = [
            argument(f"x{i}", (n, height, width, c), q.dtype)
            for i, (c, q) in enumerate(zip(channels, inputs, strict=True))
        ]
        y = argument("y", (n, height, width, total), out_q.dtype)
        flats = [flat(x, n * (height * width * c)) for x, c in zip(xs, channels, strict=True)]
        y_flat = flat(y, n * (height * width * total))
        with T.parallel(0, n * height) as row, T.serial(0, width) as column:
            pixel = row * width + column
            offset = 0
            for x, c, q in zip(flats, channels, inputs, strict=True):
                source, target = pixel * c, pixel * total + offset
                if q == out_q:
                    copy_flat(y_flat, target, x, source, c)
                else:
                    _requantize(y_flat, target, x, source, c, q, out_q)
                offset += c
    return Kernel("concat_nhwc_u8", builder.get())


def _requantize(
    y: Expr, target: Expr, x: Expr, source: Expr, channels: int, q: QuantParams, out_q: QuantParams
) -> None:
    cut = channels // _VEC_CHANNELS * _VEC_CHANNELS

    def main(at: Expr, lanes: int) -> None:
        real = dequantize_vec(x[ramp(source + at, lanes)], q, lanes)
        value = quantize_vec(real, reciprocal_f64(out_q.scale), out_q, lanes)
        T.buffer_store(y, cast(value, out_q.dtype, lanes), [ramp(target + at, lanes)])

    for_vectors(cut, main)
    for c in range(cut, channels):
        value = quantize_val(dequantize_val(x[source + c], q, 1), out_q, 1)
        T.buffer_store(y, cast(value, out_q.dtype, 1), [target + c])
