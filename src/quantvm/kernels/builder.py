"""Vector-level building blocks for PrimFuncs: loads, stores, conversions, and float arithmetic with exact rounding.

LLVM contracts `a*b + c` into one FMA wherever the target has one, which drops a rounding. Use `rounded` for products
that PyTorch rounds separately, and `fma` where PyTorch uses an FMA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm.tirx.script.builder as T
from tvm import tirx
from tvm.script.ir_builder import IRBuilder

Expr = Any  # a tirx expression; TVM's Python classes carry no type information
Buffer = Any

LANES = 16
"""32-bit lanes of one vector; on targets with narrower registers LLVM splits it."""
ALIGNMENT_BYTES = 64
"""The alignment that the code assumes for tensors; TVM's runtime allocates them so."""


@dataclass(frozen=True)
class Kernel:
    """One PrimFunc, and the constants that are its arguments between inputs and output.

    Attributes:
        name: for profiles and listings, e.g. conv2d_u8i8acc32_vnni.
        func: destination-passing PrimFunc: inputs, constants, output.
        constants: packed weights, per-channel vectors, tables.
        macs: multiply-adds in 8-bit integers per image; 0 for kernels that are not contractions.
    """

    name: str
    func: tirx.PrimFunc
    constants: tuple[np.ndarray, ...] = ()
    macs: int = 0


@contextmanager
def prim_func() -> Iterator[IRBuilder]:
    """Opens a PrimFunc; `.get()` of the yielded builder returns it after the block."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        yield builder


def symbolic_batch() -> tirx.Var:
    """Returns a fresh int64 variable for the number of images."""
    return tirx.Var("n", "int64")


def argument(name: str, shape: Sequence[Any], dtype: str) -> Buffer:
    """Adds a dense buffer argument to the open PrimFunc."""
    handle = T.arg(name, T.handle())
    return T.match_buffer(handle, tuple(shape), dtype, align=ALIGNMENT_BYTES)


def flat(buffer: Buffer, numel: Expr) -> Buffer:
    """Returns a one-dimensional view of a dense buffer."""
    return T.decl_buffer((numel,), buffer.dtype, data=buffer.data, align=ALIGNMENT_BYTES)


@dataclass(frozen=True)
class FlatFunction:
    """An open PrimFunc over dense tensors of one shape, all seen as flat buffers in memory order."""

    builder: IRBuilder
    n: Expr
    numel: Expr
    inputs: list[Buffer]
    constants: list[Buffer]
    output: Buffer


@contextmanager
def flat_function(
    item_shape: Sequence[int], in_dtypes: Sequence[str], out_dtype: str, constants: Sequence[np.ndarray] = (), *,
    one_for_all: Collection[int] = (),
) -> Iterator[FlatFunction]:  # fmt: skip
    """Opens a PrimFunc with inputs and an output of shape (n, *item_shape), and one-dimensional constants.

    Inputs whose indices are in `one_for_all` have shape (1, *item_shape).
    """
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        sizes = [1 if i in one_for_all else n for i in range(len(in_dtypes))]
        xs = [argument(f"x{i}", (sizes[i], *item_shape), dtype) for i, dtype in enumerate(in_dtypes)]
        cs = [argument(f"c{i}", c.shape, str(c.dtype)) for i, c in enumerate(constants)]
        y = argument("y", (n, *item_shape), out_dtype)
        item = math.prod(item_shape)
        views = [flat(x, size * item) for x, size in zip(xs, sizes, strict=True)]
        yield FlatFunction(builder, n, n * item, views, cs, flat(y, n * item))


@dataclass(frozen=True)
class ImageFunction:
    """An open PrimFunc from n images to n images, or vectors, of as many channels."""

    builder: IRBuilder
    n: Expr
    x: Buffer
    y: Buffer


@contextmanager
def image_function(
    in_size: tuple[int, int], out_size: tuple[int, ...], channels: int, in_dtype: str, out_dtype: str
) -> Iterator[ImageFunction]:
    """Opens a PrimFunc with an input of shape (n, *in_size, C) and an output of shape (n, *out_size, C)."""
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *in_size, channels), in_dtype)
        y = argument("y", (n, *out_size, channels), out_dtype)
        yield ImageFunction(builder, n, x, y)


def local(count: int, dtype: str) -> Buffer:
    """Allocates `count` elements, less than 1 KiB, which LLVM keeps in registers if every index is constant.

    TVM puts an allocation on the stack only in scope "global" and below 1 KiB. Otherwise it calls the runtime's
    workspace allocator, and the elements stay in memory.
    """
    return T.alloc_buffer((count,), dtype)


def ramp(start: Expr, lanes: int = LANES, stride: int = 1) -> Expr:
    """Returns the index vector start, start+stride, ...; a scalar index for one lane."""
    return start if lanes == 1 else tirx.Ramp(start, stride, lanes)


def splat(value: Expr, lanes: int = LANES, dtype: str | None = None) -> Expr:
    """Returns `value` in every lane; Python and NumPy numbers need `dtype`."""
    if dtype is not None:
        value = tirx.const(value.item() if isinstance(value, np.generic) else value, dtype)
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def cast(value: Expr, dtype: str, lanes: int = LANES) -> Expr:
    """Converts each lane to `dtype`."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def typed(dtype: str, lanes: int) -> str:
    """Returns the TVM name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """Calls an LLVM intrinsic that has no side effect and returns `dtype`."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def prefetch(address: Expr) -> None:
    """Prefetches the cache line at `address`; an address outside of all buffers does no harm."""
    read, locality, data = (tirx.const(v, "int32") for v in (0, 3, 1))
    name = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    T.evaluate(T.call_llvm_intrin(name, address, read, locality, data, dtype="void"))


def rounded(product: Expr, lanes: int = LANES) -> Expr:
    """Keeps a float32 product from being contracted into a following addition."""
    return intrinsic("llvm.arithmetic.fence", typed("float32", lanes), product)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = LANES) -> Expr:
    """Returns a*b + c with one rounding, in hardware or in software."""
    return intrinsic("llvm.fma", typed("float32", lanes), a, b, c)


def round_even(x: Expr) -> Expr:
    """Rounds float32 to the nearest integer, ties to even, staying in float32."""
    return T.nearbyint(x)


def clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """Returns min(max(x, low), high)."""
    return T.min(T.max(x, low), high)


def ceil_div(a: int, b: int) -> int:
    """Returns a / b rounded up."""
    return -(-a // b)


def store_prefix(target: Buffer, indices: Sequence[Expr], start: Expr, value: Expr, count: int, dtype: str) -> None:
    """Stores the first `count` lanes of a LANES-wide `value` at target[*indices, start:start+count].

    A partial vector goes through a local copy in power-of-two pieces, so that nothing beyond it is written (another
    thread may own those bytes).
    """
    if count == LANES:
        T.buffer_store(target, value, [*indices, ramp(start)])
        return
    piece_buffer = local(LANES, dtype)
    T.buffer_store(piece_buffer, value, [ramp(0)])
    offset = 0
    for width in (8, 4, 2, 1):
        if count & width:
            piece = piece_buffer[ramp(offset, width)]
            T.buffer_store(target, piece, [*indices, ramp(start + offset, width)])
            offset += width


def for_vectors(count: int, body: Callable[[Expr, int], None]) -> None:
    """Emits body(start, lanes) over `count` elements: a loop of full vectors, then the rest in powers of two."""
    if count >= LANES:
        with T.serial(0, count // LANES) as step:
            body(step * LANES, LANES)
    offset = count // LANES * LANES
    for width in (8, 4, 2, 1):
        if (count - count // LANES * LANES) & width:
            body(tirx.const(offset, "int32"), width)
            offset += width


def target_features(target: tvm.target.Target) -> frozenset[str]:
    """Returns the CPU features that LLVM derives from the target's mcpu and mattr."""
    features = tvm.get_global_func("target.llvm_get_cpu_features")(target)
    return frozenset(str(name) for name in features)
