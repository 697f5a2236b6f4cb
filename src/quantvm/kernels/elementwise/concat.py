"""Concatenation of quantized tensors along channels, each requantized to the output's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels import x86
from quantvm.kernels.arithmetic import dequantize_val, dequantize_vec, quantize_val, quantize_vec
from quantvm.kernels.builder import (
    Buffer,
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
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.kernels.staging import copy_flat
from quantvm.numerics.binary import concatenated
from quantvm.numerics.torch_engines import QuantParams, reciprocal_f64

_VEC_CHANNELS = 8


def concat_nhwc(
    pixels: tuple[int, int], channels: Sequence[int], inputs: Sequence[QuantParams], out_q: QuantParams,
    isa: Isa = PLAIN, exact_tables: Sequence[np.ndarray] | None = None,
) -> Kernel:  # fmt: skip
    """Returns `quantized::cat` along channels of channels-last tensors: (n, H, W, C_i) -> (n, H, W, sum C_i).

    Computes: an input with the output's parameters is copied. For other inputs, the first C//8*8 channels are
        Q_VEC(D_VEC(x), (float)(1.0/scale)), by a table if `isa` has byte tables; the others are Q_VAL(D_VAL(x)).
    With `exact_tables`, (256,) entries for each input, those requantize all of its channels.
    Exactness: torch 2.13 with all inputs channels-last, bit for bit.
    """
    height, width = pixels
    total = sum(channels)
    if exact_tables is None:
        tables = [_table(q, out_q) if isa.byte_tables and q != out_q else None for q in inputs]
    else:
        tables = [table if q != out_q else None for q, table in zip(inputs, exact_tables, strict=True)]
    constants = tuple(table for table in tables if table is not None)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        xs = [
            argument(f"x{i}", (n, height, width, c), q.dtype)
            for i, (c, q) in enumerate(zip(channels, inputs, strict=True))
        ]
        views = [
            None if table is None else argument(f"table{i}", table.shape, str(table.dtype))
            for i, table in enumerate(tables)
        ]
        y = argument("y", (n, height, width, total), out_q.dtype)
        flats = [flat(x, n * (height * width * c)) for x, c in zip(xs, channels, strict=True)]
        y_flat = flat(y, n * (height * width * total))
        with T.parallel(0, n * height) as row:
            offset = 0
            for x, c, q, table in zip(flats, channels, inputs, views, strict=True):
                with T.serial(0, width) as column:
                    pixel = row * width + column
                    source, target = pixel * c, pixel * total + offset
                    if q == out_q:
                        copy_flat(y_flat, target, x, source, c)
                    elif exact_tables is not None:
                        _through_table(y_flat, target, x, source, c, table, q, isa)
                    else:
                        _requantize(y_flat, target, x, source, c, q, out_q, table)
                offset += c
    return Kernel("concat_nhwc_u8", builder.get(), constants)


def _table(q: QuantParams, out_q: QuantParams) -> np.ndarray | None:
    """Returns the results of the vector formula for every uint8, or None for other dtypes."""
    if q.dtype != "uint8" or out_q.dtype != "uint8":
        return None
    return concatenated(np.arange(256), q, out_q)[0].astype(np.uint8)


def _requantize(
    y: Expr, target: Expr, x: Expr, source: Expr, channels: int, q: QuantParams, out_q: QuantParams,
    table: Buffer | None,
) -> None:  # fmt: skip
    cut = channels // _VEC_CHANNELS * _VEC_CHANNELS

    def main(at: Expr, lanes: int) -> None:
        codes = x[ramp(source + at, lanes)]
        if table is None:
            value = quantize_vec(dequantize_vec(codes, q, lanes), reciprocal_f64(out_q.scale), out_q, lanes)
            value = cast(value, out_q.dtype, lanes)
        else:
            value = x86.look_up(codes, [table[ramp(64 * i, 64)] for i in range(4)], lanes)
        T.buffer_store(y, value, [ramp(target + at, lanes)])

    if table is not None:
        _for_wide_vectors(cut, main)
    else:
        for_vectors(cut, main)
    for c in range(cut, channels):
        value = quantize_val(dequantize_val(x[source + c], q, 1), out_q, 1)
        T.buffer_store(y, cast(value, out_q.dtype, 1), [target + c])


def _through_table(
    y: Expr, target: Expr, x: Expr, source: Expr, channels: int, table: Buffer, q: QuantParams, isa: Isa
) -> None:
    def emit(at: Expr, lanes: int) -> None:
        if isa.byte_tables and q.dtype == "uint8" and table.dtype == "uint8" and lanes >= _VEC_CHANNELS:
            quarters = [table[ramp(64 * i, 64)] for i in range(4)]
            value = x86.look_up(x[ramp(source + at, lanes)], quarters, lanes)
            T.buffer_store(y, value, [ramp(target + at, lanes)])
            return
        for lane in range(lanes):
            index = cast(x[source + at + lane], "int32", 1) - q.quant_min
            T.buffer_store(y, table[index], [target + at + lane])

    _for_wide_vectors(channels, emit)


def _for_wide_vectors(count: int, body: Callable[[Expr, int], None]) -> None:
    """Emits body(start, lanes) over `count` bytes, 64 at a time while as many are left."""
    wide = count // 64 * 64
    if wide:
        with T.serial(0, wide // 64) as step:
            body(step * 64, 64)
    if count - wide >= 32:
        body(tirx.const(wide, "int32"), 32)
        wide += 32
    for_vectors(count - wide, lambda at, lanes: body(wide + at, lanes))
