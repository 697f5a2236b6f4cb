"""How PyTorch's TensorIterator walks over tensors: in which order, in which rows, and which elements it vectorises.

An element-wise operator has one formula for vectors and another for the scalar tail of each row (torch_engines.py), so
its bits depend on this walk. A loop of `GRAIN_SIZE` elements or more is cut into equal pieces, one per thread. In each
piece, a row is computed in vectors of `VEC_BLOCK` elements; the rest of the row is its tail.

Reference: ATen/TensorIterator.cpp, ATen/Parallel-inl.h of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.pytorch import PyTorch

Strides = tuple[Any, ...]

VEC_BLOCK = 64
"""Elements per step of PyTorch's vectorised element-wise loops (two AVX2 registers of bytes); the rest is scalar."""

GRAIN_SIZE = 32768
"""Elements below which PyTorch's TensorIterator does not split a loop over threads."""

PIXELS_FIRST = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
"""The dimensions from the innermost to the outermost in channels-last order, by the rank."""


# ------------------------------------------------------------------ strides; sizes may be expressions


def dense(shape: Sequence[Any], inner_first: Sequence[int]) -> Strides:
    """Returns the strides of a tensor without gaps whose dimensions lie in the given order, the innermost first."""
    strides: list[Any] = [1] * len(shape)
    step: Any = 1
    for dim in inner_first:
        strides[dim] = step
        step = shape[dim] * step if not isinstance(shape[dim], int) else step * shape[dim]
    return tuple(strides)


def contiguous(shape: Sequence[Any]) -> Strides:
    """Returns the strides of a contiguous tensor."""
    return dense(shape, range(len(shape))[::-1])


def channels_last(shape: Sequence[Any]) -> Strides:
    """Returns the strides of a channels-last tensor of rank 4 or 5."""
    return dense(shape, PIXELS_FIRST[len(shape)])


def expanded(sizes: Sequence[int], strides: Sequence[Any], new_sizes: Sequence[int]) -> Strides:
    """Returns the strides of a tensor broadcast to another shape: 0 where it is repeated."""
    new = len(new_sizes) - len(sizes)
    repeats = [a == 1 and b != 1 for a, b in zip(sizes, new_sizes[new:], strict=True)]
    return (0,) * new + tuple(0 if repeat else stride for repeat, stride in zip(repeats, strides, strict=True))


# ------------------------------------------------------------------ loops


@dataclass(frozen=True)
class Loop:
    """PyTorch's loop over element-wise operands of one shape.

    Attributes:
        inner_first: the dimensions, the innermost first.
        count: how many of them, the innermost ones, form a row.
        vectorised: whether rows are vectorised: all operands are dense along them; one may instead be repeated.
        length: number of elements in a row; 1 if rows are not vectorised.
    """

    inner_first: list[int]
    count: int
    vectorised: bool
    length: int

    @property
    def is_flat(self) -> bool:
        """Whether all elements form one row."""
        return self.count == len(self.inner_first)


def loop_over(sizes: list[int], output: Sequence[int] | None, inputs: Sequence[Sequence[int]]) -> Loop:
    """Returns the loop over tensors of one shape.

    Args:
        sizes: the shape.
        output: strides of the result; None if PyTorch allocates it, in the order of the inputs.
        inputs: strides of the inputs, 0 where they are repeated.
    """
    inner_first = reordered(sizes, inputs if output is None else [output, *inputs])
    operands = [dense(sizes, inner_first) if output is None else output, *inputs]
    count = coalesced(sizes, operands, inner_first)
    inner = [_row_step(sizes, operand, inner_first[:count]) for operand in operands]
    repeated = [step for step in inner[1:] if step == 0]
    vectorised = inner[0] == 1 and len(repeated) <= 1 and all(step in (0, 1) for step in inner[1:])
    length = math.prod(sizes[dim] for dim in inner_first[:count]) if vectorised else 1  # else all elements are tails
    return Loop(inner_first, count, vectorised, length)


def reordered(sizes: list[int], operands: Sequence[Sequence[int]], *, reduces: bool = False) -> list[int]:
    """Returns the dimensions as TensorIterator sorts them, the innermost first: an insertion sort by strides.

    In a reduction (`reduces`), dimensions in which the output, which is the first operand, has stride 0 come first.
    """
    order = list(range(len(sizes)))[::-1]
    for start in range(1, len(order)):
        at = start
        for before in reversed(range(start)):
            comparison = _compared(sizes, operands, order[before], order[at], reduces)
            if comparison > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif comparison < 0:
                break
    return order


def _compared(sizes: list[int], operands: Sequence[Sequence[int]], first: int, second: int, reduces: bool) -> int:
    for strides in operands:
        a, b = strides[first], strides[second]
        if reduces and strides is operands[0] and (a == 0) != (b == 0):
            return 1 if b == 0 else -1
        if a == 0 or b == 0:
            continue
        if a != b:
            return -1 if a < b else 1
        if sizes[first] > sizes[second]:
            return 1
    return 0


def coalesced(sizes: list[int], operands: Sequence[Sequence[int]], inner_first: list[int]) -> int:
    """Returns how many of the innermost dimensions PyTorch merges into one."""
    size, steps = sizes[inner_first[0]], [strides[inner_first[0]] for strides in operands]
    for count, dim in enumerate(inner_first[1:], 1):
        nexts = [strides[dim] for strides in operands]
        fits = all(size * a == b for a, b in zip(steps, nexts, strict=True))
        if not (size == 1 or sizes[dim] == 1 or fits):
            return count
        if size == 1:
            steps = nexts
        size *= sizes[dim]
    return len(inner_first)


def _row_step(sizes: list[int], strides: Sequence[int], row: list[int]) -> int:
    """Returns the stride along a row: that of its first dimension with more than one element."""
    return next((strides[dim] for dim in row if sizes[dim] != 1), strides[row[-1]])


# ------------------------------------------------------------------ vectors and tails


def vectorised_piece(numel: int, pytorch: PyTorch) -> int:
    """Returns how many of `numel` elements each of PyTorch's threads computes in an element-wise loop."""
    if numel < GRAIN_SIZE or pytorch.threads == 1:
        return max(numel, 1)
    pieces = min(pytorch.threads, -(-numel // GRAIN_SIZE))
    return -(-numel // pieces)


def vectorised_cut(numel: int, pytorch: PyTorch, row: int | None = None) -> NDArray[np.bool_]:
    """Returns which of `numel` elements, in the order of the loop, PyTorch vectorises; the others are scalar tails.

    Args:
        numel: number of elements.
        pytorch: its threads cut the loop into pieces.
        row: number of elements in a row; None if all elements form one row.
    """
    piece, at = vectorised_piece(numel, pytorch), np.arange(numel)
    length = max(numel, 1) if row is None else row
    begin = np.maximum(at // piece * piece, at // length * length)
    end = np.minimum(np.minimum((at // piece + 1) * piece, (at // length + 1) * length), numel)
    return at - begin < (end - begin) // VEC_BLOCK * VEC_BLOCK


def has_no_tails(numel: int, pytorch: PyTorch) -> bool:
    """Returns whether PyTorch vectorises all of `numel` elements, if they form one row."""
    return vectorised_piece(numel, pytorch) % VEC_BLOCK == 0 and numel % VEC_BLOCK == 0


def no_multiple_has_tails(count: int, pytorch: PyTorch) -> bool:
    """Returns whether `has_no_tails` holds for every multiple of `count` elements."""
    return all(count % (VEC_BLOCK * pieces) == 0 for pieces in range(1, pytorch.threads + 1))


def vectorised_elements(
    sizes: Sequence[int], output: Sequence[int] | None, inputs: Sequence[Sequence[int]], pytorch: PyTorch
) -> NDArray[np.bool_]:
    """Returns which elements of an element-wise operator PyTorch vectorises, in logical order.

    Args:
        sizes: the shape of the result.
        output: see `loop_over`.
        inputs: see `loop_over`.
        pytorch: its threads cut the loop into pieces.
    """
    found = loop_over(list(sizes), output, inputs)
    order = found.inner_first[::-1]
    flat = vectorised_cut(math.prod(sizes), pytorch, found.length) if found.vectorised else np.zeros(sizes, bool)
    return flat.reshape([sizes[dim] for dim in order]).transpose(np.argsort(order))
