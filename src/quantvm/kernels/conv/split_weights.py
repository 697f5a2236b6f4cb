"""Exact sums by vpmaddubsw, which saturates the sum of two products to int16: the weight is split into two tensors.

x[0]*w[0] + x[1]*w[1] with uint8 x fits int16 if the positive ones of (w[0], w[1]) sum to at most 128, and the negative
ones to at least -128. The excess of a pair is subtracted from its second weight and stored in another tensor, in which
the first weight of every pair is zero. vpmaddwd sums the products of the excess, two at a time, widened to int16. The
excess is almost everywhere zero; only its non-zero steps are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantvm.kernels.builder import LANES

from .dot import SPLIT_PRODUCTS, DotProduct

PAIR_LIMIT = 128
"""255 * 128 = 32,640 fits int16, 255 * 129 does not."""
_MOST_EXCESS = 0.35
"""Greatest share of steps with excess for which splitting (1.3 to 1.6 times their cost) is faster than widening all."""


@dataclass(frozen=True)
class Excess:
    """What was cut off a packed weight.

    Attributes:
        weight: (entries, 2 * lanes) int16, for the odd channels of a step; entries are grouped by accumulator register.
        steps: (entries, 3) int32: row, column and step of the window.
        first: (groups * vectors * (LANES / lanes) + 1,) int32: the index of each register's first entry.
    """

    weight: np.ndarray
    steps: np.ndarray
    first: np.ndarray


def split_pairs(packed_i8: np.ndarray, dot: DotProduct) -> tuple[np.ndarray, Excess]:
    """Returns a weight whose pairs of products never saturate, and the excess that was subtracted from it.

    Args:
        packed_i8: (groups * vectors, rows, columns, steps, LANES * k_step), as `DotProduct.pack` returns it.
        dot: how products are accumulated.
    """
    beyond = _beyond(packed_i8)
    rest = packed_i8.copy()
    rest[..., 1::2] -= beyond
    beyond = _by_register(beyond, dot)
    where = np.argwhere(beyond.any(-1))
    excess = beyond[tuple(where.T)].astype(np.int16)
    first = np.searchsorted(where[:, 0], np.arange(len(beyond) + 1))
    return rest, Excess(excess, where[:, 1:].astype(np.int32), first.astype(np.int32))


def _beyond(packed_i8: np.ndarray) -> np.ndarray:
    """Returns how far each pair exceeds the limit, with the pair's sign; int8 of half the length."""
    pairs = packed_i8.astype(np.int16)
    even, odd = pairs[..., ::2], pairs[..., 1::2]
    above = np.maximum(even, 0) + np.maximum(odd, 0) - PAIR_LIMIT
    below = np.minimum(even, 0) + np.minimum(odd, 0) + PAIR_LIMIT
    return (np.maximum(above, 0) + np.minimum(below, 0)).astype(np.int8)


def _by_register(beyond: np.ndarray, dot: DotProduct) -> np.ndarray:
    """Returns (vectors, ..., LANES * n) as (vectors * LANES / lanes, ..., lanes * n)."""
    vectors, *window, length = beyond.shape
    registers = LANES // dot.lanes
    parts = beyond.reshape(vectors, *window, registers, length // registers)
    return np.moveaxis(parts, -2, 1).reshape(vectors * registers, *window, length // registers)


def split_product(dot: DotProduct, weight: np.ndarray) -> DotProduct:
    """Returns the dot product that splits weights, if there is one for the CPUs of `dot` and it is faster; else `dot`.

    Args:
        dot: an exact dot product.
        weight: (O, ..., I/groups) int8.
    """
    split = SPLIT_PRODUCTS.get(dot.name)
    if split is None or weight.dtype != np.int8:
        return dot
    packed = split.pack(weight.reshape(len(weight), -1, 1, weight.shape[-1]))
    return split if _by_register(_beyond(packed), split).any(-1).mean() <= _MOST_EXCESS else dot
