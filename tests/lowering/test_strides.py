"""Loops over tensors of any number of images are, for each number, the loops over tensors of that size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tvm import tirx

from quantvm.errors import CompileError
from quantvm.lowering import strides as torch_strides
from quantvm.lowering.tensors import rows_and_item
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.tensor_iterator import dense, loop_over, vectorised_cut, vectorised_elements

N = tirx.Var("n", "int64")
IMAGES = (1, 2, 3, 7)


def at(values: Any, images: int) -> list[int]:
    return [torch_strides.at_batch(value, images) for value in values]


def operand(rng: np.random.Generator, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """Strides of a tensor in a random order, perhaps with a gap or repeated along a dimension."""
    order = [*(int(d) for d in rng.permutation(len(shape) - 1) + 1), 0]
    order = list(range(len(shape)))[::-1] if rng.random() < 0.4 else order
    if rng.random() < 0.2:
        order = [int(d) for d in rng.permutation(len(shape))]
    strides = list(dense(shape, order))
    if rng.random() < 0.25:
        gap = int(rng.integers(len(order)))
        for dim in order[gap:]:
            strides[dim] = strides[dim] * 2
    if rng.random() < 0.2:
        strides[int(rng.integers(len(shape)))] = 0
    return tuple(strides)


def row_length(found: torch_strides.Walk, physical: list[Any], images: int, numel: int) -> int | None:
    """The length of a row that a kernel computes while it runs."""
    if found.row is None:
        return None
    rows = torch_strides.at_batch(rows_and_item(physical)[0], images)
    length = found.row(tirx.IntImm("int32", rows), tirx.IntImm("int32", numel))
    return length if isinstance(length, int) else torch_strides.at_batch(length, images)


def test_rows_are_those_of_the_batch():
    rng, seen = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(200):
        shape = (N, *(int(size) for size in rng.choice([1, 2, 5, 8], rng.integers(1, 4))))
        inputs = [operand(rng, shape) for _ in range(int(rng.integers(1, 3)))]
        output = None if rng.random() < 0.5 else dense(shape, list(range(len(shape)))[::-1])
        try:
            found = torch_strides.walk(shape, output, inputs)
        except CompileError:
            continue
        for images in IMAGES:
            sizes = at(shape, images)
            made = None if output is None else at(output, images)
            expected = vectorised_elements(sizes, made, [at(strides, images) for strides in inputs], PyTorch("fbgemm"))
            physical, numel = [shape[dim] for dim in found.order], math.prod(sizes)
            flat = np.zeros(numel, bool)
            if found.vectorised:
                flat = vectorised_cut(numel, PyTorch("fbgemm"), row_length(found, physical, images, numel))
            mask = flat.reshape(at(physical, images)).transpose(np.argsort(found.order))
            loop = loop_over(sizes, made, [at(strides, images) for strides in inputs])
            if images > 1 and output is None:
                assert at(found.strides, images) == list(dense(sizes, loop.inner_first))
            np.testing.assert_array_equal(mask, expected, err_msg=f"{images} of {shape}, {inputs}, {output}")
            seen[bool(expected.any())] += 1
    assert min(seen.values()) > 40


def test_rows_that_only_one_image_has():
    """With several images the input's elements lie apart along the rows of the output."""
    found = torch_strides.walk((N, 8, 16), dense((N, 8, 16), (2, 1, 0)), [dense((N, 8, 16), (0, 2, 1))])
    assert found.vectorised
    assert [row_length(found, [N, 8, 16], images, 128 * images) for images in IMAGES] == [128, 1, 1, 1]


@pytest.mark.parametrize("images", IMAGES)
def test_sizes_at_a_batch(images):
    assert at((N, N * 3, N + 1, 3 * N * N, 7), images) == [images, images * 3, images + 1, 3 * images**2, 7]


def test_views_of_any_batch():
    rng = np.random.default_rng(1)
    for _ in range(200):
        shape = (N, *(int(size) for size in rng.choice([1, 2, 3, 4], 3)))
        strides = operand(rng, shape)
        item = (math.prod(shape[2:]), shape[1])
        for new in ((N, math.prod(shape[1:])), (N, *item), (N * shape[1], *shape[2:]), (N, 1, *shape[1:])):
            found = torch_strides.viewed(shape, strides, new)
            for images in (2, 3):
                x = torch.empty(10_000).as_strided(at(shape, images), at(strides, images))
                try:
                    expected = list(x.view(at(new, images)).stride())
                except RuntimeError:
                    expected = None
                assert (None if found is None else at(found, images)) == expected, (shape, strides, new)


def test_usual_orders():
    def order(shape: tuple[int, ...], inner_first: tuple[int, ...]) -> tuple[int, ...]:
        return torch_strides.walk(shape, None, [dense(shape, inner_first)]).order

    assert order((2, 3, 4, 5), (3, 2, 1, 0)) == (0, 1, 2, 3)
    assert order((2, 3, 4, 5), (1, 3, 2, 0)) == (0, 2, 3, 1)
    assert order((2, 3, 1, 5), (2, 1, 3, 0)) == (0, 2, 3, 1)  # differs from channels-last in a size of 1 only
    assert order((2, 3, 4, 5), (0, 1, 2, 3)) == (3, 2, 1, 0)
    assert order((2, 3, 4), (1, 2, 0)) == (0, 2, 1)


def test_formats_that_operators_keep():
    shape = (2, 3, 4, 5)
    for order in ((3, 2, 1, 0), (1, 3, 2, 0), (2, 3, 1, 0), (0, 1, 2, 3)):
        x = torch.empty(120).as_strided(shape, dense(shape, order))
        assert torch_strides.preserved(shape, x.stride()) == torch.neg(x).stride()
    gap = torch.empty(2, 3, 8, 5)[:, :, ::2]
    assert torch_strides.preserved(shape, gap.stride()) == torch.neg(gap).stride()


def test_dimensions_that_a_reduction_merges():
    source = torch.empty(2, 3, 4, 5).stride()
    assert torch_strides.merged((2, 3, 4, 5), (3, 1, 0, 0), source) == [[3, 2], [1, 0]]
    assert torch_strides.merged((2, 3, 4, 5), (20, 0, 5, 1), source) == [[1], [3, 2], [0]]
    assert torch_strides.merged((2, 3, 4, 5), (0, 0, 0, 0), source) == [[3, 2, 1, 0]]
