"""How u8 x i8 products are accumulated into int32: one `DotProduct` per instruction set; DOT_PRODUCTS are exact.

|acc| <= K * 255 * 128 fits int32 for K <= 65,793 products; FBGEMM and oneDNN share that bound.

vpdpbusd sums four products in int32. Without it, vpmaddubsw would saturate the sums to int16. So both operands are
widened to int16, and vpmaddwd sums two of their products, at most 2 * 255 * 128, in int32.

If weights are split so that no sum of two products saturates, vpmaddubsw is exact too, and faster: these are
SPLIT_PRODUCTS, see split_weights.py.

On CPUs without VNNI, FBGEMM and oneDNN do use vpmaddubsw. PAIR_PRODUCTS give the same bits: every sum of two products
saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tvm
import tvm.tirx.script.builder as T

from quantvm.kernels.builder import LANES, Buffer, Expr, cast, intrinsic, ramp, splat, target_features, typed
from quantvm.kernels.x86 import multiply_pairs


@dataclass(frozen=True)
class DotProduct:
    """Accumulates `k_step` products into each of `lanes` int32 lanes.

    Attributes:
        name: suffix in the names of kernels that use it.
        k_step: consecutive input channels that one call consumes.
        lanes: output channels of one call, a divisor of LANES: the int32 lanes of a register.
        accumulate: (acc_i32 vector, activations, weights) -> acc_i32 vector, as one expression.
        load_x: (flat buffer, index) -> k_step activations, splat over the lanes.
        requires: LLVM features that it needs.
        accumulators: maximum number of vectors of LANES accumulators in a tile.
        registers: number of vector registers; a tile's accumulators, weights and temporaries must fit, or LLVM spills.
        weight_registers: registers that hold the weights of LANES channels while they are used.
        temporaries: registers for one activation, masks and intermediate results.
        cycles: cycles of one step for LANES channels if nothing else limits it; for comparing schedules.
        saturates: whether sums of two products, those of channels 2i and 2i+1 of a step, saturate to int16.
        add_odd: for split weights, whose pairs do not saturate: (acc_i32 vector, activations, int16 weights) -> acc_i32
            vector; adds the products of the channels 2i+1 of a step, exactly.
    """

    name: str
    k_step: int
    lanes: int
    accumulate: Callable[[Expr, Expr, Expr], Expr]
    load_x: Callable[[Buffer, Expr], Expr]
    requires: frozenset[str]
    registers: int = 32
    weight_registers: int = 1
    temporaries: int = 1
    accumulators: int = 32
    cycles: float = 0.5
    saturates: bool = False
    add_odd: Callable[[Expr, Expr, Expr], Expr] | None = None

    def greatest_pixels(self, vectors: int) -> int:
        """Returns the maximum number of pixels in a tile with `vectors` vectors of LANES channels; 0 if none fits."""
        accumulators = (self.registers - self.temporaries - vectors * self.weight_registers) // (LANES // self.lanes)
        return min(accumulators, self.accumulators) // vectors

    def pack(self, w_i8: np.ndarray) -> np.ndarray:
        """Returns (O, KH, KW, I) weights as (ceil(O/LANES), KH, KW, ceil(I/k_step), LANES*k_step), zero-padded."""
        OC, KH, KW, IC = w_i8.shape
        blocks, steps = -(-OC // LANES), -(-IC // self.k_step)
        padded = np.zeros((blocks * LANES, KH, KW, steps * self.k_step), w_i8.dtype)
        padded[:OC, :, :, :IC] = w_i8
        # (O/L, L, KH, KW, I/k, k) -> (O/L, KH, KW, I/k, L, k)
        tiles = padded.reshape(blocks, LANES, KH, KW, steps, self.k_step).transpose(0, 2, 3, 4, 1, 5)
        return np.ascontiguousarray(tiles.reshape(blocks, KH, KW, steps, LANES * self.k_step))


def _vpdpbusd(lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    def accumulate(acc: Expr, x: Expr, w: Expr) -> Expr:
        return intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", f"int32x{lanes}", acc, x, w)

    return accumulate


def _vpmaddwd(name: str, lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    """As int16, a lane holds bytes (0, 1) and (2, 3): even bytes are the low halves, odd bytes the high halves."""

    def accumulate(acc: Expr, x: Expr, w: Expr) -> Expr:
        (even_x, even_w), (odd_x, odd_w) = _even_and_odd(x, w, lanes)
        even = intrinsic(name, f"int32x{lanes}", even_x, even_w)
        return acc + even + intrinsic(name, f"int32x{lanes}", odd_x, odd_w)

    return accumulate


def _even_and_odd(x: Expr, w: Expr, lanes: int) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
    """Returns the even bytes of unsigned x and signed w, widened to int16, then the odd ones; each has 2*lanes."""
    words = f"int16x{2 * lanes}"
    x, w, eight = T.reinterpret(words, x), T.reinterpret(words, w), splat(8, 2 * lanes, "int16")
    even_x = T.bitwise_and(x, splat(255, 2 * lanes, "int16"))
    return (even_x, T.shift_right(T.shift_left(w, eight), eight)), (_odd_bytes(x, lanes), T.shift_right(w, eight))


def _odd(name: str, lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    def add_odd(acc: Expr, x: Expr, w_i16: Expr) -> Expr:
        return acc + intrinsic(name, f"int32x{lanes}", _odd_bytes(x, lanes), w_i16)

    return add_odd


def _odd_bytes(x: Expr, lanes: int) -> Expr:
    words = T.shift_right(T.reinterpret(f"uint16x{2 * lanes}", x), splat(8, 2 * lanes, "uint16"))
    return T.reinterpret(f"int16x{2 * lanes}", words)


def _saturated_pairs(add_words: str, lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    def accumulate(acc: Expr, x: Expr, w: Expr) -> Expr:
        ones = splat(1, 2 * lanes, "int16")
        return acc + intrinsic(add_words, f"int32x{lanes}", multiply_pairs(x, w, lanes), ones)

    return accumulate


def _saturated_pairs_portable(acc: Expr, x: Expr, w: Expr) -> Expr:
    (even_x, even_w), (odd_x, odd_w) = _even_and_odd(x, w, LANES // 2)
    pairs = intrinsic("llvm.sadd.sat", typed("int16", LANES), even_x * even_w, odd_x * odd_w)
    return acc + cast(pairs, "int32", LANES)


def _load_two(buffer: Buffer, at: Expr) -> Expr:
    return T.reinterpret(f"uint8x{2 * LANES}", splat(T.reinterpret("int16", buffer[ramp(at, 2)]), LANES))


def _load_four(lanes: int) -> Callable[[Buffer, Expr], Expr]:
    def load(buffer: Buffer, at: Expr) -> Expr:
        word = T.reinterpret("int32", buffer[ramp(at, 4)])
        return T.reinterpret(f"uint8x{4 * lanes}", splat(word, lanes))

    return load


def _dot_portable(acc: Expr, x: Expr, w: Expr) -> Expr:
    return acc + x * cast(w, "int32")


def _load_one(buffer: Buffer, at: Expr) -> Expr:
    return splat(cast(buffer[at], "int32", lanes=1))


VNNI512 = DotProduct(
    "vnni", 4, 16, _vpdpbusd(16), _load_four(16), frozenset({"avx512vnni", "avx512bw", "avx512vl"})
)  # fmt: skip
AVXVNNI = DotProduct(
    "avxvnni", 4, 8, _vpdpbusd(8), _load_four(8), frozenset({"avxvnni"}),
    registers=16, weight_registers=2, cycles=1.0,
)  # fmt: skip
AVX512 = DotProduct(
    "avx512", 4, 16, _vpmaddwd("llvm.x86.avx512.pmaddw.d.512", 16), _load_four(16), frozenset({"avx512bw"}),
    weight_registers=2, temporaries=4, cycles=2.0,
)  # fmt: skip
AVX2 = DotProduct(
    "avx2", 4, 8, _vpmaddwd("llvm.x86.avx2.pmadd.wd", 8), _load_four(8), frozenset({"avx2"}),
    registers=16, weight_registers=4, temporaries=3, cycles=3.0,
)  # fmt: skip
PORTABLE = DotProduct("portable", 1, 16, _dot_portable, _load_one, frozenset(), accumulators=16)
DOT_PRODUCTS = (VNNI512, AVXVNNI, AVX512, AVX2, PORTABLE)
"""Exact dot products, the fastest first."""

AVX512_PAIRS = DotProduct(
    "avx512_pairs", 4, 16, _saturated_pairs("llvm.x86.avx512.pmaddw.d.512", 16), _load_four(16), AVX512.requires,
    temporaries=3, cycles=1.0, saturates=True,
)  # fmt: skip
AVX2_PAIRS = DotProduct(
    "avx2_pairs", 4, 8, _saturated_pairs("llvm.x86.avx2.pmadd.wd", 8), _load_four(8), AVX2.requires,
    registers=16, weight_registers=2, temporaries=3, cycles=2.0, saturates=True,
)  # fmt: skip
PORTABLE_PAIRS = DotProduct(
    "portable_pairs", 2, 16, _saturated_pairs_portable, _load_two, frozenset(), accumulators=16, saturates=True
)
PAIR_PRODUCTS = (AVX512_PAIRS, AVX2_PAIRS, PORTABLE_PAIRS)
"""Dot products that saturate like PyTorch's on CPUs without VNNI, the fastest first."""

SPLIT_PRODUCTS = {
    dot.name: replace(pairs, name=f"{dot.name}_split", saturates=False, add_odd=_odd(name, dot.lanes))
    for dot, pairs, name in (
        (AVX512, AVX512_PAIRS, "llvm.x86.avx512.pmaddw.d.512"),
        (AVX2, AVX2_PAIRS, "llvm.x86.avx2.pmadd.wd"),
    )
}
"""Name of an exact dot product -> the one that replaces it for split weights."""
BY_NAME = {dot.name: dot for dot in (*DOT_PRODUCTS, *PAIR_PRODUCTS, *SPLIT_PRODUCTS.values())}


def missing_features(target: tvm.target.Target) -> tuple[tuple[DotProduct, frozenset[str]], ...]:
    """Returns every dot product in the order of preference, with the required features that `target` lacks."""
    features = target_features(target)
    return tuple((dot, dot.requires - features) for dot in DOT_PRODUCTS)


def select_dot(target: tvm.target.Target, name: str | None = None) -> DotProduct:
    """Returns the first dot product whose features `target` has, or the one called `name`.

    Raises:
        ValueError: `name` is unknown, or the target lacks a feature that it requires.
    """
    for dot, missing in missing_features(target):
        if name in (None, dot.name) and not missing:
            return dot
        if name == dot.name:
            raise ValueError(f"dot product {name} requires {sorted(missing)}, which {target} lacks")
    raise ValueError(f"unknown dot product {name!r}, expected one of {[dot.name for dot in DOT_PRODUCTS]}")


def select_pairs(target: tvm.target.Target, name: str | None = None) -> DotProduct:
    """Returns the first of PAIR_PRODUCTS whose features `target` has; the portable one if `name` is portable."""
    if name == PORTABLE.name:
        return PORTABLE_PAIRS
    features = target_features(target)
    return next(dot for dot in PAIR_PRODUCTS if dot.requires <= features)
