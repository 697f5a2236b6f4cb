"""Which vector instructions beyond plain LLVM code a kernel may use."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from .builder import target_features


@dataclass(frozen=True)
class Isa:
    """Instruction groups of a target, each with code of its own in some kernel; all codes give the same bits.

    Attributes:
        packs: 512-bit conversions and saturating packs to bytes (AVX512BW).
        byte_tables: 256-entry table look-ups of 64 bytes at once (AVX512VBMI).
        pairs: sums of byte products in pairs, and of 16-bit pairs into 32 bits (AVX512BW with AVX512VNNI).
    """

    packs: bool = False
    byte_tables: bool = False
    pairs: bool = False


PLAIN = Isa()
"""No more than what LLVM makes of portable code."""


def select_isa(target: tvm.target.Target) -> Isa:
    """Returns the instruction groups that LLVM may use for `target`."""
    features = target_features(target)
    packs = {"avx512f", "avx512bw", "avx512vl"} <= features
    return Isa(packs, packs and "avx512vbmi" in features, packs and "avx512vnni" in features)
