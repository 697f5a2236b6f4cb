"""The walk of TensorIterator: PyTorch's results show its order; rows are elements that lie side by side."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.tensor_iterator import (
    GRAIN_SIZE,
    channels_last,
    coalesced,
    contiguous,
    expanded,
    has_no_tails,
    loop_over,
    no_multiple_has_tails,
    reordered,
    vectorised_cut,
    vectorised_elements,
    vectorised_piece,
)


def view(rng: np.random.Generator, sizes: list[int]) -> torch.Tensor:
    """A tensor of these sizes: permuted, sliced or expanded."""
    order = [int(d) for d in rng.permutation(len(sizes))]
    repeated = [bool(rng.random() < 0.15) for _ in sizes]
    gaps = [int(rng.choice([1, 1, 1, 2])) for _ in sizes]
    stored = torch.empty([1 if repeated[d] else sizes[d] * gaps[d] for d in order])
    x = stored.permute([order.index(d) for d in range(len(sizes))])
    for d, gap in enumerate(gaps):
        x = x if repeated[d] else x[(slice(None),) * d + (slice(None, None, gap),)]
    return x.expand(sizes)


def test_results_lie_in_the_order_of_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(700):
        sizes = [int(size) for size in rng.choice([1, 2, 3, 5], rng.integers(1, 5))]
        inputs = [view(rng, sizes) for _ in range(int(rng.integers(1, 3)))]
        expected = torch.add(*inputs) if len(inputs) == 2 else torch.neg(inputs[0])
        inner_first = loop_over(sizes, None, [x.stride() for x in inputs]).inner_first
        step, strides = 1, [0] * len(sizes)
        for dim in inner_first:
            strides[dim], step = step, step * sizes[dim]
        seen = [stride for stride, size in zip(expected.stride(), sizes, strict=True) if size > 1]
        assert [stride for stride, size in zip(strides, sizes, strict=True) if size > 1] == seen


def test_rows_hold_what_lies_side_by_side():
    rng, vectorised = np.random.default_rng(1), 0
    for _ in range(700):
        sizes = [int(size) for size in rng.choice([1, 2, 3, 5], rng.integers(1, 5))]
        operands = [view(rng, sizes).stride() for _ in range(int(rng.integers(1, 3)))]
        output = operands[0] if rng.random() < 0.5 else None
        found = loop_over(sizes, output, operands)
        inner = found.inner_first[: found.count]
        if not found.vectorised:
            assert found.length == 1
            continue
        vectorised += 1
        assert found.length == math.prod(sizes[d] for d in inner)
        assert found.is_flat == (found.length == math.prod(sizes) or found.count == len(sizes))
        repeats = 0
        for strides in operands:
            step = next((strides[d] for d in inner if sizes[d] != 1), 1)
            places = [
                sum(i * strides[d] for i, d in zip(index[::-1], inner, strict=True))
                for index in np.ndindex(*(sizes[d] for d in inner[::-1]))
            ]
            assert places == [step * i for i in range(found.length)]
            repeats += step == 0
        assert repeats <= 1
    assert vectorised > 150


@pytest.mark.parametrize(
    ("sizes", "operands", "count"),
    [
        ([2, 3, 4], [(12, 4, 1)], 3),
        ([2, 3, 4], [(12, 4, 1), (12, 4, 1)], 3),
        ([2, 3, 4], [(24, 8, 1)], 1),
        ([2, 3, 4], [(24, 4, 1)], 2),
        ([2, 3, 4], [(12, 4, 1), (24, 4, 1)], 2),
        ([2, 1, 4], [(4, 99, 1)], 3),
        ([2, 3, 1], [(3, 1, 99)], 3),
        ([2, 3, 1], [(9, 1, 99)], 2),
    ],
)
def test_which_dimensions_become_one(sizes, operands, count):
    assert coalesced(sizes, operands, [2, 1, 0]) == count


def test_reductions_have_the_reduced_dimensions_inside():
    source = (12, 4, 1)
    assert reordered([2, 3, 4], [(1, 0, 0), source], reduces=True) == [2, 1, 0]
    assert reordered([2, 3, 4], [(0, 4, 1), source], reduces=True) == [0, 2, 1]
    assert reordered([2, 3, 4], [(0, 4, 1), source]) == [2, 1, 0]
    assert reordered([2, 3, 4], [(4, 0, 1), source], reduces=True) == [1, 2, 0]


def test_strides_of_the_two_formats_and_of_expanded_tensors():
    x = torch.empty(2, 3, 4, 5)
    assert contiguous(x.shape) == x.stride()
    assert channels_last(x.shape) == x.contiguous(memory_format=torch.channels_last).stride()
    y = torch.empty(2, 3, 4, 5, 6)
    assert channels_last(y.shape) == y.contiguous(memory_format=torch.channels_last_3d).stride()
    gate = torch.empty(3, 1, 5)
    assert expanded(gate.shape, gate.stride(), (2, 3, 4, 5)) == gate.expand(2, 3, 4, 5).stride()
    assert expanded((1,), (7,), (1,)) == (7,)


# ------------------------------------------------------------------ vectors and tails


@pytest.mark.parametrize(
    ("numel", "threads", "piece"),
    [
        (0, 1, 1), (0, 2, 1), (10, 4, 10), (GRAIN_SIZE - 1, 4, GRAIN_SIZE - 1), (GRAIN_SIZE, 4, GRAIN_SIZE),
        (GRAIN_SIZE + 1, 1, GRAIN_SIZE + 1), (GRAIN_SIZE + 1, 2, GRAIN_SIZE // 2 + 1), (2 * GRAIN_SIZE, 4, GRAIN_SIZE),
        (2 * GRAIN_SIZE + 1, 4, 21846), (9 * GRAIN_SIZE, 4, 73728), (9 * GRAIN_SIZE + 1, 4, 73729),
    ],
)  # fmt: skip
def test_pieces_of_threads(numel, threads, piece):
    assert vectorised_piece(numel, PyTorch("fbgemm", threads)) == piece


@pytest.mark.parametrize(
    ("numel", "threads", "row"),
    [(200, 1, None), (128, 1, None), (63, 1, None), (200, 1, 70), (256, 1, 64), (GRAIN_SIZE + 200, 2, None),
     (GRAIN_SIZE + 200, 2, 100), (GRAIN_SIZE + 200, 3, 328)],
)  # fmt: skip
def test_vectors_are_whole_blocks_of_the_row_in_each_piece(numel, threads, row):
    piece, expected = vectorised_piece(numel, PyTorch("fbgemm", threads)), np.zeros(numel, bool)
    for start in range(0, numel, piece):
        stop = min(start + piece, numel)
        while start < stop:
            end = stop if row is None else min(stop, (start // row + 1) * row)
            expected[start : start + (end - start) // 64 * 64] = True
            start = end
    np.testing.assert_array_equal(vectorised_cut(numel, PyTorch("fbgemm", threads), row), expected)


def test_loops_without_tails():
    one, two, three = (PyTorch("fbgemm", threads) for threads in (1, 2, 3))
    for numel in (0, 64, 65, 128, GRAIN_SIZE, GRAIN_SIZE + 64, GRAIN_SIZE + 128):
        for pytorch in (one, two, three):
            is_whole = numel > 0 and vectorised_cut(numel, pytorch).all()
            assert has_no_tails(numel, pytorch) == is_whole, (numel, pytorch)
    assert [no_multiple_has_tails(count, one) for count in (32, 64, 96, 128)] == [False, True, False, True]
    assert [no_multiple_has_tails(count, two) for count in (64, 128)] == [False, True]
    assert [no_multiple_has_tails(count, three) for count in (128, 256, 384)] == [False, False, True]


def test_elements_in_logical_order():
    sizes = (1, 3, 5, 6)  # 90 elements: one block of 64, and tails
    strides = channels_last(sizes)
    found = vectorised_elements(sizes, None, [strides], PyTorch("fbgemm"))
    in_memory = found.transpose(0, 2, 3, 1).reshape(-1)
    assert in_memory.tolist() == [True] * 64 + [False] * 26
    assert not vectorised_elements(
        sizes, None, [strides, contiguous(sizes)], PyTorch("fbgemm")
    ).any()  # no common order
    assert (
        vectorised_elements(sizes, contiguous(sizes), [contiguous(sizes), (0, 0, 0, 0)], PyTorch("fbgemm")).sum() == 64
    )
