"""The special vector instructions that kernels may use where portable code would not reach them."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from .builder import target_features


@dataclass(frozen=True)
class Isa:
    """Instruction groups of a target. Some kernels have separate code for a group; the bits are always the same.

    Attributes:
        packs: 512-bit conversions and saturating packs to bytes (AVX512BW).
        byte_tables: look-ups of 64 bytes at once in a table of 256 entries (AVX512VBMI).
        pairs: sums of byte products in pairs, and of 16-bit pairs into 32 bits (AVX512BW with AVX512VNNI).
    """

    packs: bool = False
    byte_tables: bool = False
    pairs: bool = False


PLAIN = Isa()
"""No special instructions: LLVM compiles portable code."""


_PACKS = frozenset({"avx512f", "avx512bw", "avx512vl"})
_REQUIRES = {"packs": _PACKS, "byte_tables": _PACKS | {"avx512vbmi"}, "pairs": _PACKS | {"avx512vnni"}}


def missing_for_groups(target: tvm.target.Target) -> dict[str, frozenset[str]]:
    """Returns, for each group of `Isa`, the required features that `target` lacks."""
    features = target_features(target)
    return {group: required - features for group, required in _REQUIRES.items()}


def select_isa(target: tvm.target.Target) -> Isa:
    """Returns the instruction groups that LLVM may use for `target`."""
    return Isa(**{group: not missing for group, missing in missing_for_groups(target).items()})
