"""PyTorch's strides, in elements: how views change them, which memory format they suggest, how loops walk over them.

Sizes and strides are ints, or symbolic expressions where the batch is dynamic. Answers that depend on them are computed
for one number of images greater than one; they are the same for all such numbers.

Reference: c10/core/MemoryFormat.h, c10/core/Contiguity.h, ATen/TensorUtils.cpp `computeStride`, ATen/TensorIterator.cpp
of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.sym.analyzer import Analyzer

from quantvm.errors import CompileError
from quantvm.numerics import tensor_iterator
from quantvm.numerics.tensor_iterator import (
    PIXELS_FIRST,
    Loop,
    Strides,
    channels_last,
    coalesced,
    contiguous,
    dense,
    loop_over,
    reordered,
)

Sizes = Sequence[Any]
SEVERAL_IMAGES = 3
"""A number of images that represents all numbers greater than one."""


def at_batch(size: Any, images: int) -> int:
    """Returns a size with `images` in place of the dynamic batch."""
    if isinstance(size, int):
        return size
    analyzer = Analyzer()
    for variable in _variables(size):
        analyzer.bind(variable, tirx.IntImm("int64", images))
    return int(analyzer.simplify(size))


def _variables(size: Any) -> set[Any]:
    if isinstance(size, tirx.Var):
        return {size}
    return {variable for part in ("a", "b") if hasattr(size, part) for variable in _variables(getattr(size, part))}


def _known(values: Sizes, images: int = SEVERAL_IMAGES) -> list[int]:
    return [at_batch(value, images) for value in values]


def is_dense(shape: Sizes, strides: Strides, inner_first: Sequence[int], images: int = SEVERAL_IMAGES) -> bool:
    """Returns whether a tensor has this order and no gaps; dimensions of size 1 may have any stride."""
    step = 1
    for size, stride in ((_known([shape[d], strides[d]], images)) for d in inner_first):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def is_contiguous(shape: Sizes, strides: Strides, images: int = SEVERAL_IMAGES) -> bool:
    """Returns the result of Tensor.is_contiguous()."""
    return is_dense(shape, strides, range(len(shape))[::-1], images)


def is_channels_last(shape: Sizes, strides: Strides, images: int = SEVERAL_IMAGES) -> bool:
    """Returns the result of Tensor.is_contiguous(memory_format=torch.channels_last), for rank 4."""
    return len(shape) == 4 and is_dense(shape, strides, PIXELS_FIRST[4], images)


def suggests_channels_last(shape: Sizes, strides: Strides) -> bool:
    """Returns whether Tensor.suggest_memory_format() is channels_last, or channels_last_3d for rank 5."""
    order = PIXELS_FIRST.get(len(shape))
    sizes, steps = _known(shape), _known(strides)
    if order is None or steps[1] == 0:
        return False
    least = 0
    for dim in order:
        if steps[dim] < least or (dim == 0 and least == steps[1]):
            return False
        least = steps[dim] * max(sizes[dim], 1)
    return True


def preserved(shape: Sizes, strides: Strides) -> Strides:
    """Returns the strides of the result of a float element-wise operator: in the input's order, without gaps."""
    if is_contiguous(shape, strides):
        return contiguous(shape)
    if is_channels_last(shape, strides):
        return channels_last(shape)
    return dense(shape, reordered(_known(shape), [_known(strides)]))


def equal(a: Strides, b: Strides) -> bool:
    """Returns whether two tensors of one shape have equal strides."""
    return _known(a) == _known(b)


# ------------------------------------------------------------------ views


def viewed(shape: Sizes, strides: Strides, new_shape: Sizes) -> Strides | None:
    """Returns the strides of a view in another shape; None if PyTorch copies the elements instead."""
    old, steps, new = _known(shape), _known(strides), _known(new_shape)
    found: list[Any] = [None] * len(new)
    at = len(new) - 1
    base: Any = strides[-1] if strides else 1
    chunk = seen = 1
    symbolic: Any = 1
    for dim in reversed(range(len(old))):
        chunk *= old[dim]
        if dim and (old[dim - 1] == 1 or steps[dim - 1] == chunk * _known([base])[0]):
            continue
        while at >= 0 and (seen < chunk or new[at] == 1):
            found[at] = base * symbolic if isinstance(base, int) else symbolic * base
            seen *= new[at]
            symbolic = new_shape[at] * symbolic if not isinstance(new_shape[at], int) else symbolic * new_shape[at]
            at -= 1
        if seen != chunk:
            return None
        if dim:
            base, chunk, seen, symbolic = strides[dim - 1], 1, 1, 1
    return tuple(found) if at == -1 else None


def expanded(shape: Sizes, strides: Strides, new_shape: Sizes) -> Strides:
    """Returns the strides of a tensor broadcast to another shape: 0 where it is repeated."""
    return tensor_iterator.expanded(_known(shape), strides, _known(new_shape))


# ------------------------------------------------------------------ loops


Row = Callable[[Any, Any], Any]
"""(number of rows of the kernel's operands, elements) -> elements in a row of PyTorch's loop; all are expressions."""


@dataclass(frozen=True)
class Walk:
    """How PyTorch's loop walks over element-wise operands.

    Attributes:
        order: the dimensions from the outermost to the innermost.
        row: gives the number of elements in a row, that is in the innermost dimensions which PyTorch merges; each row
            is vectorised separately. None if all elements form one row.
        vectorised: whether rows are vectorised: all operands are dense along them; one may instead be repeated.
        strides: strides of the output.
    """

    order: tuple[int, ...]
    row: Row | None
    vectorised: bool
    strides: Strides


def walk(shape: Sizes, output: Strides | None, inputs: Sequence[Strides]) -> Walk:
    """Returns how PyTorch walks over tensors of one shape.

    Args:
        shape: shape of the result.
        output: its strides; None if PyTorch allocates it, in the order of the inputs.
        inputs: strides of the inputs, 0 where they are repeated.

    Raises:
        CompileError: dynamic sizes lie both inside of rows and outside of them.
    """
    several = _loop(shape, output, inputs, SEVERAL_IMAGES)
    order = _usual(_known(shape), several.inner_first[::-1])
    if output is None:
        output = dense(shape, several.inner_first)
    if all(isinstance(size, int) for size in shape):
        flat = several.is_flat or not several.vectorised
        length = several.length
        return Walk(order, None if flat else lambda rows, numel: length, several.vectorised, output)
    one = _loop(shape, output, inputs, 1)
    if not several.vectorised and not one.vectorised:
        return Walk(order, None, False, output)
    numel = math.prod(_known(shape, 1))
    around = [shape[dim] for dim in several.inner_first[several.count :]]
    holds_batch = not all(isinstance(shape[dim], int) for dim in several.inner_first[: several.count])
    if several.vectorised and holds_batch and not all(isinstance(size, int) for size in around):
        raise CompileError(
            f"an element-wise operator on a view of shape {list(shape)} with several dynamic sizes; "
            "compile with batch='static' (--batch static)"
        )
    parts = math.prod(int(size) for size in around) if several.vectorised and holds_batch else 0
    expected = numel // parts if parts else several.length
    alone = min(one.length, numel)
    if several.vectorised and several.is_flat and alone == numel:
        return Walk(order, None, True, output)
    physical = [shape[dim] for dim in order]
    last = max(i for i, size in enumerate(physical) if not isinstance(size, int))
    rows_of_one = math.prod(_known(physical[: last + 1], 1))

    def row(rows: Any, elements: Any) -> Any:
        length = elements // parts if parts else several.length
        return length if min(expected, numel) == alone else tirx.Select(rows == rows_of_one, alone, length)

    return Walk(order, row, True, output)


def _loop(shape: Sizes, output: Strides | None, inputs: Sequence[Strides], images: int) -> Loop:
    made = None if output is None else _known(output, images)
    return loop_over(_known(shape, images), made, [_known(strides, images) for strides in inputs])


def _usual(sizes: list[int], order: list[int]) -> tuple[int, ...]:
    """Returns the logical order, or channels-last, if `order` differs from it only in dimensions of size 1."""
    ranks = [tuple(range(len(sizes))), *([(0, 2, 3, 1)] if len(sizes) == 4 else [])]
    large = [dim for dim in order if sizes[dim] != 1]
    return next((usual for usual in ranks if [d for d in usual if sizes[d] != 1] == large), tuple(order))


def merged(shape: Sizes, output: Strides, source: Strides) -> list[list[int]]:
    """Returns groups of dimensions that a reduction's loop merges; groups and their dimensions are innermost first.

    Args:
        shape: shape of the input.
        output: strides of the result, 0 in the reduced dimensions.
        source: strides of the input.
    """
    sizes, operands = _known(shape), [_known(output), _known(source)]
    rest, groups = reordered(sizes, operands, reduces=True), []
    while rest:
        count = coalesced(sizes, operands, rest)
        groups.append(rest[:count])
        rest = rest[count:]
    return groups
