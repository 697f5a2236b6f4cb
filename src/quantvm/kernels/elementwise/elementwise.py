"""Element-wise int8 operators: add, multiply, tables of activations, clamp.

PyTorch vectorises blocks of 64 elements of the flat buffer and computes the rest by other formulas. With several
threads, each has its own piece with its own rest. These kernels cut the buffer into the same pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.arithmetic import dequantize_val, dequantize_vec, quantize_val, quantize_vec
from quantvm.kernels.builder import (
    LANES,
    Expr,
    Kernel,
    argument,
    cast,
    clamp,
    flat,
    flat_function,
    for_vectors,
    prim_func,
    ramp,
    round_even,
    splat,
    symbolic_batch,
)
from quantvm.numerics.binary import QnnpackAdd, product_multiplier
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.tensor_iterator import GRAIN_SIZE, VEC_BLOCK
from quantvm.numerics.torch_engines import QuantParams, reciprocal_f32

Emit = Callable[[Expr, int, bool], None]
"""emit(index, lanes, is_tail): the operator on `lanes` elements from a flat index."""


Row = Callable[[Expr, Expr], Expr]

_ANY_THREADS = 64
"""Maximum number of pieces, for operators whose result does not depend on how the buffer is cut."""


def _over_pieces(numel: Expr, most_pieces: int, emit: Emit) -> None:
    """Emits the operator over `numel` elements, in PyTorch's pieces, blocks and tails."""
    with _pieces(numel, most_pieces) as (start, count):
        _blocks_and_tail(start, count, emit)


@contextmanager
def _pieces(numel: Expr, most_pieces: int) -> Iterator[tuple[Expr, Expr]]:
    """Opens the loop over PyTorch's pieces of `numel` elements; yields the start and the length of a piece.

    PyTorch makes at most one piece for each thread.
    """
    pieces = tirx.min(most_pieces, (numel + (GRAIN_SIZE - 1)) // GRAIN_SIZE)
    length = (numel + pieces - 1) // pieces
    with T.parallel(0, pieces) as piece:
        start = piece * length
        yield start, tirx.min(length, numel - start)


def _blocks_and_tail(start: Expr, count: Expr, emit: Emit) -> None:
    with T.serial(0, count // VEC_BLOCK) as block, T.serial(0, VEC_BLOCK // LANES) as part:
        emit(start + block * VEC_BLOCK + part * LANES, LANES, False)
    with T.serial(0, count % VEC_BLOCK) as rest:
        emit(start + count // VEC_BLOCK * VEC_BLOCK + rest, 1, True)


def _over_rows(length: Expr, numel: Expr, most_pieces: int, emit: Callable[[Expr, Expr, int, bool], None]) -> None:
    """Emits an operator over rows of `length` elements: emit(index, index in the row, ...).

    PyTorch's loop over a piece restarts at each row, so every row has its own tail.
    """
    with _pieces(numel, most_pieces) as (start, count):
        first = start // length
        with T.serial(0, (start + count - 1) // length - first + 1) as step:
            row = (first + step) * length
            begin, end = tirx.max(row, start), tirx.min(row + length, start + count)
            _blocks_and_tail(begin, end - begin, lambda at, lanes, is_tail: emit(at, at - row, lanes, is_tail))


def over_elements(numel: Expr, emit: Callable[[Expr, int], None]) -> None:
    """Emits an operator without tails over `numel` elements of a flat buffer, in parallel: emit(index, lanes)."""
    _over_pieces(numel, _ANY_THREADS, lambda at, lanes, is_tail: emit(at, lanes))


def add(
    item_shape: Sequence[int], a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool, pytorch: PyTorch,
    one_for_all: bool = False, row: Row | None = None, vectorised: bool = True,
) -> Kernel:  # fmt: skip
    """Returns quantized addition of two (n, *item_shape) tensors of one layout; b is (1, *item_shape) if `one_for_all`.

    Computes: main: c = fl(D_VEC(a) + D_VEC(b)); relu: max(c, 0); Q_VEC. tail: D_VAL and Q_VAL instead. Each run of
        `row` elements, which is a function of n and numel, has a tail; without `vectorised`, all elements are tails.
    Exactness: `quantized::add`, `quantized::add_relu` of torch 2.13 with as many threads as `pytorch`, bit for bit.
    """
    dtypes = (a_q.dtype, b_q.dtype)
    with flat_function(item_shape, dtypes, out_q.dtype, one_for_all=(1,) if one_for_all else ()) as f:
        a_flat, b_flat = f.inputs

        def emit(at: Expr, b_at: Expr, lanes: int, is_tail: bool) -> None:
            dequantize = dequantize_val if is_tail else dequantize_vec
            total = dequantize(a_flat[ramp(at, lanes)], a_q, lanes) + dequantize(b_flat[ramp(b_at, lanes)], b_q, lanes)
            total = T.max(total, splat(0.0, lanes, "float32")) if relu else total
            if is_tail:
                value = quantize_val(total, out_q, lanes)
            else:
                value = quantize_vec(total, reciprocal_f32(out_q.scale), out_q, lanes)
            T.buffer_store(f.output, cast(value, out_q.dtype, lanes), [ramp(at, lanes)])

        if one_for_all:
            _over_rows(math.prod(item_shape), f.numel, pytorch.threads, emit)
        elif not vectorised:
            over_elements(f.numel, lambda at, lanes: emit(at, at, lanes, True))
        elif row is not None:
            _over_rows(
                row(f.n, f.numel), f.numel, pytorch.threads,
                lambda at, _, lanes, is_tail: emit(at, at, lanes, is_tail),
            )  # fmt: skip
        else:
            _over_pieces(f.numel, pytorch.threads, lambda at, lanes, is_tail: emit(at, at, lanes, is_tail))
    return Kernel("add_relu_u8" if relu else "add_u8", f.builder.get())


def qnnpack_add(
    item_shape: Sequence[int],
    a_q: QuantParams,
    b_q: QuantParams,
    out_q: QuantParams,
    factors: QnnpackAdd,
    *,
    relu: bool,
) -> Kernel:
    """Returns QNNPACK's addition of two (n, *item_shape) tensors of one layout.

    Computes: acc = (a-za)*ma + (b-zb)*mb; acc shifted right by `factors.shift`, ties away from zero; + zo; clip;
        relu: max(., zo).
    Exactness: `quantized::add` of torch 2.13 under the engine qnnpack, bit for bit. |acc| < 2^31, since a multiplier
        has 22 bits and a centred byte 9.
    """
    low = max(out_q.quant_min, out_q.zero_point) if relu else out_q.quant_min
    with flat_function(item_shape, (a_q.dtype, b_q.dtype), out_q.dtype) as f:
        a_flat, b_flat = f.inputs

        def emit(at: Expr, lanes: int, is_tail: bool) -> None:
            index = ramp(at, lanes)

            def constant(value: int) -> Expr:
                return splat(value, lanes, "int32")

            def term(x: Expr, q: QuantParams, multiplier: int) -> Expr:
                return (cast(x, "int32", lanes) - constant(q.zero_point)) * constant(multiplier)

            acc = term(a_flat[index], a_q, factors.a_multiplier) + term(b_flat[index], b_q, factors.b_multiplier)
            half = (1 << factors.shift) - 1
            negative = tirx.Select(acc < constant(0), constant(1), constant(0))
            rest = (acc & constant(half)) - negative
            up = tirx.Select(rest > constant(half >> 1), constant(1), constant(0))
            value = (acc >> constant(factors.shift)) + up + constant(out_q.zero_point)
            value = clamp(value, constant(low), constant(out_q.quant_max))
            T.buffer_store(f.output, cast(value, out_q.dtype, lanes), [index])

        _over_pieces(f.numel, _ANY_THREADS, emit)
    return Kernel("add_relu_fixed_point_u8" if relu else "add_fixed_point_u8", f.builder.get())


def multiply(
    item_shape: Sequence[int], a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool, broadcast: bool
) -> Kernel:
    """Returns quantized multiplication of (n, *item_shape) by the same shape, or by (n, 1, 1, C) if `broadcast`.

    Computes: m = fl(fl(sa*sb) * fl(1/so)); clip(rne(fl((a-za)*(b-zb) * m)) + zo); relu: max(., zo).
    Exactness: `quantized::mul`, `quantized::mul_relu` of torch 2.13, bit for bit; no tail effect.
    """
    multiplier = product_multiplier((a_q, b_q), out_q)
    low = max(out_q.quant_min, out_q.zero_point) if relu else out_q.quant_min

    def value(a: Expr, b: Expr, lanes: int) -> Expr:
        def centred(x: Expr, q: QuantParams) -> Expr:
            return cast(x, "int32", lanes) - splat(q.zero_point, lanes, "int32")

        product = cast(centred(a, a_q) * centred(b, b_q), "float32", lanes)
        y = round_even(product * splat(multiplier, lanes, "float32"))
        bounds = (float(low - out_q.zero_point), float(out_q.quant_max - out_q.zero_point))
        y = clamp(y, *(splat(v, lanes, "float32") for v in bounds))
        return cast(cast(y, "int32", lanes) + splat(out_q.zero_point, lanes, "int32"), out_q.dtype, lanes)

    func = over_products(item_shape, (a_q.dtype, b_q.dtype), out_q.dtype, value, broadcast=broadcast)
    return Kernel("mul_relu_u8" if relu else "mul_u8", func)


def over_products(
    item_shape: Sequence[int], in_dtypes: tuple[str, str], out_dtype: str, value: Callable[[Expr, Expr, int], Expr], *,
    broadcast: bool,
) -> tirx.PrimFunc:  # fmt: skip
    """Returns y = value(a, b, lanes) of (n, *item_shape) and the same shape, or (n, 1, 1, C) if `broadcast`."""
    channels, pixels = item_shape[-1], math.prod(item_shape[:-1])
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        a = argument("a", (n, *item_shape), in_dtypes[0])
        b = argument("b", (n, 1, 1, channels) if broadcast else (n, *item_shape), in_dtypes[1])
        y = argument("y", (n, *item_shape), out_dtype)
        numel = n * (pixels * channels)
        a_flat, y_flat = flat(a, numel), flat(y, numel)
        b_flat = flat(b, n * channels if broadcast else numel)
        rows = item_shape[0] if len(item_shape) > 1 else 1
        with T.parallel(0, n * rows) as row, T.serial(0, pixels // rows) as pixel:
            base = (row * (pixels // rows) + pixel) * channels
            b_base = row // rows * channels if broadcast else base

            def emit(at: Expr, lanes: int) -> None:
                product = value(a_flat[ramp(base + at, lanes)], b_flat[ramp(b_base + at, lanes)], lanes)
                T.buffer_store(y_flat, product, [ramp(base + at, lanes)])

            for_vectors(channels, emit)
    return builder.get()


def table(
    item_shape: Sequence[int], main: np.ndarray, tail: np.ndarray, *, in_dtype: str, pytorch: PyTorch, name: str,
    row: Row | None = None, vectorised: bool = True,
) -> Kernel:  # fmt: skip
    """Returns y[i] = main[x[i]], or tail[x[i]] for the elements that PyTorch does not vectorise.

    Args:
        item_shape: shape of one image's tensor.
        main: (256,) entries, indexed by x - min of its dtype.
        tail: (256,) entries, likewise.
        in_dtype: uint8 or int8.
        pytorch: the tails depend on its threads.
        name: what the table computes.
        row: (n, elements) -> elements in a row of PyTorch's vectorised loop; None: all elements are one row.
        vectorised: whether PyTorch vectorises anything.
    """
    low = 0 if in_dtype == "uint8" else -128
    main = main if vectorised else tail
    tables = (main,) if np.array_equal(main, tail) else (main, tail)
    with flat_function(item_shape, (in_dtype,), str(main.dtype), tables) as f:
        (x,) = f.inputs

        def emit(at: Expr, lanes: int, is_tail: bool) -> None:
            entries = f.constants[-1 if is_tail else 0]
            for lane in range(lanes):
                T.buffer_store(f.output, entries[cast(x[at + lane], "int32", 1) - low], [at + lane])

        if row is None or len(tables) == 1:
            _over_pieces(f.numel, pytorch.threads, emit)
        else:
            _over_rows(
                row(f.n, f.numel), f.numel, pytorch.threads, lambda at, _, lanes, is_tail: emit(at, lanes, is_tail)
            )
    return Kernel(f"{name}_table", f.builder.get(), tables)


def table_by_channel(item_shape: Sequence[int], tables: np.ndarray, inner: int, *, in_dtype: str, name: str) -> Kernel:
    """Returns y[i] = tables[channel][x[i]] of (n, *item_shape), the channel being i // inner % channels.

    Args:
        item_shape: shape of one image's tensor, in memory order.
        tables: (channels, 256) entries, indexed by x - min of its dtype.
        inner: number of adjacent elements of one channel.
        in_dtype: uint8 or int8.
        name: what the tables compute.
    """
    low, channels = (0 if in_dtype == "uint8" else -128), len(tables)
    entries = np.ascontiguousarray(tables.reshape(-1))
    with flat_function(item_shape, (in_dtype,), str(tables.dtype), (entries,)) as f:
        (x,) = f.inputs
        with T.parallel(0, f.n) as image, T.serial(0, math.prod(item_shape)) as at:
            position = image * math.prod(item_shape) + at
            index = at // inner % channels * 256 + cast(x[position], "int32", 1) - low
            T.buffer_store(f.output, f.constants[0][index], [position])
    return Kernel(f"{name}_by_channel", f.builder.get(), (entries,))


def clamp_integers(item_shape: Sequence[int], low: int, high: int, dtype: str, name: str) -> Kernel:
    """Returns min(max(x, low), high) on the integers: relu, clip and the like that keep the parameters."""
    with flat_function(item_shape, (dtype,), dtype) as f:
        (x,) = f.inputs

        def emit(at: Expr, lanes: int, is_tail: bool) -> None:
            value = clamp(x[ramp(at, lanes)], splat(low, lanes, dtype), splat(high, lanes, dtype))
            T.buffer_store(f.output, value, [ramp(at, lanes)])

        _over_pieces(f.numel, _ANY_THREADS, emit)
    return Kernel(f"{name}_u8", f.builder.get())
