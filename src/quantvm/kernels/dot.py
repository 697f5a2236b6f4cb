"""How u8 x i8 products are accumulated into int32: one `DotProduct` per instruction set, all exact.

|acc| <= K * 255 * 128 fits int32 for K <= 65,793 products; FBGEMM and oneDNN share that bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
import tvm.tirx.script.builder as T

from .builder import LANES, Buffer, Expr, cast, ramp, splat, target_features


@dataclass(frozen=True)
class DotProduct:
    """Accumulates `k_step` products into each of LANES int32 lanes.

    Attributes:
        name: suffix of the kernels that use it.
        k_step: consecutive input channels that one call consumes.
        accumulate: (acc_i32 vector, activations, weights) -> acc_i32 vector, as one expression.
        load_x: (flat buffer, index) -> k_step activations, splat over the lanes.
        requires: LLVM features without which it cannot be compiled.
    """

    name: str
    k_step: int
    accumulate: Callable[[Expr, Expr, Expr], Expr]
    load_x: Callable[[Buffer, Expr], Expr]
    requires: frozenset[str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights that one call consumes."""
        return LANES * self.k_step

    def pack(self, w_i8: np.ndarray) -> np.ndarray:
        """Returns (O, KH, KW, I) weights as (ceil(O/LANES), KH, KW, ceil(I/k_step), LANES*k_step), zero-padded."""
        OC, KH, KW, IC = w_i8.shape
        blocks, steps = -(-OC // LANES), -(-IC // self.k_step)
        padded = np.zeros((blocks * LANES, KH, KW, steps * self.k_step), w_i8.dtype)
        padded[:OC, :, :, :IC] = w_i8
        # (O/L, L, KH, KW, I/k, k) -> (O/L, KH, KW, I/k, L, k)
        tiles = padded.reshape(blocks, LANES, KH, KW, steps, self.k_step).transpose(0, 2, 3, 4, 1, 5)
        return np.ascontiguousarray(tiles.reshape(blocks, KH, KW, steps, LANES * self.k_step))


def _dot_vnni512(acc: Expr, x: Expr, w: Expr) -> Expr:
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"), acc, x, w, dtype="int32x16"
    )


def _load_four(buffer: Buffer, at: Expr) -> Expr:
    word = T.reinterpret("int32", buffer[ramp(at, 4)])
    return T.reinterpret("uint8x64", splat(word))


def _dot_portable(acc: Expr, x: Expr, w: Expr) -> Expr:
    return acc + x * cast(w, "int32")


def _load_one(buffer: Buffer, at: Expr) -> Expr:
    return splat(cast(buffer[at], "int32", lanes=1))


VNNI512 = DotProduct("vnni", 4, _dot_vnni512, _load_four, frozenset({"avx512vnni", "avx512bw", "avx512vl"}))
PORTABLE = DotProduct("portable", 1, _dot_portable, _load_one, frozenset())
DOT_PRODUCTS = (VNNI512, PORTABLE)


def select_dot(target: tvm.target.Target, name: str | None = None) -> DotProduct:
    """Returns the first dot product whose features `target` has, or the one called `name`.

    Raises:
        ValueError: `name` is unknown, or the target lacks a feature that it requires.
    """
    features = target_features(target)
    for dot in DOT_PRODUCTS:
        if name in (None, dot.name) and dot.requires <= features:
            return dot
        if name == dot.name:
            raise ValueError(f"dot product {name} requires {sorted(dot.requires - features)}, which {target} lacks")
    raise ValueError(f"unknown dot product {name!r}, expected one of {[dot.name for dot in DOT_PRODUCTS]}")
