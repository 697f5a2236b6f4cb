"""Means of quantized tensors over any dimensions of an image, in the order in which ATen sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.arithmetic import dequantize_val, quantize_arr
from quantvm.kernels.builder import (
    Buffer,
    Expr,
    Kernel,
    argument,
    cast,
    flat,
    local,
    prim_func,
    ramp,
    round_even,
    splat,
    symbolic_batch,
)
from quantvm.numerics.torch_engines import QuantParams

SUM_LANES = 8
"""float32 lanes of ATen's sums: those of AVX2, even on CPUs with AVX512."""
SUM_BLOCK = 4 * SUM_LANES
"""Neighbouring columns that ATen sums at once."""


@dataclass(frozen=True)
class SummedAxis:
    """A dimension that ATen's loop sums over: its size, and its stride in the input."""

    size: int
    stride: int


@dataclass(frozen=True)
class KeptAxis:
    """A dimension of an image that is not summed over: its size, and its strides in the input and in the output."""

    size: int
    stride: int
    out_stride: int


@dataclass(frozen=True)
class SumPlan:
    """How ATen sums over one image, after merging dimensions where possible.

    Attributes:
        summed: dimensions that are summed over, the innermost first.
        kept: the other dimensions of the image, the innermost first.
        columns: how many of `kept` are merged into the columns of the inner loop; if there are two summed dimensions,
            the columns are those of the second.
        form: rows: each run of elements is summed in vectors. blocks: `block` columns are summed at once. single: each
            column is summed separately.
        block: columns that the form blocks sums at once; remaining columns are summed singly.
    """

    summed: tuple[SummedAxis, ...]
    kept: tuple[KeptAxis, ...]
    columns: int
    form: Literal["rows", "blocks", "single"]
    block: int = 1

    @property
    def column_count(self) -> int:
        """Number of columns of the inner loop."""
        if len(self.summed) > 1:
            return self.summed[1].size
        return math.prod(axis.size for axis in self.kept[: self.columns])


def inner_mean(item_shape: Sequence[int], count: int, q: QuantParams) -> Kernel:
    """Returns the mean over the last dimensions of (n, *item_shape) integers, `count` elements each: (n, outputs).

    Computes: rne(fl(sum(q) / count)).
    Exactness: `mean` of torch 2.13 over the last dimensions of a contiguous tensor, bit for bit.
    """
    outputs = math.prod(item_shape) // count
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), q.dtype)
        y = argument("y", (n, outputs), q.dtype)
        x_flat, y_flat = flat(x, n * (outputs * count)), flat(y, n * outputs)
        with T.parallel(0, n * outputs) as at:
            total = local(1, "int32")
            T.buffer_store(total, 0, [0])
            with T.serial(0, count) as i:
                T.buffer_store(total, total[0] + cast(x_flat[at * count + i], "int32", 1), [0])
            mean = tirx.div(cast(total[0], "float32", 1), splat(float(count), 1, "float32"))
            T.buffer_store(y_flat, cast(cast(round_even(mean), "int32", 1), q.dtype, 1), [at])
    return Kernel("inner_mean_u8", builder.get())


def mean(item_shape: Sequence[int], plan: SumPlan, q: QuantParams) -> Kernel:
    """Returns the mean over dimensions of an image, as `plan` says: (n, *item_shape) in memory order -> (n, outputs).

    Computes: D_VAL, a float32 sum in the order of `at::sum`, fl(./count), Q_ARR.
    Exactness: `mean` of a quantized tensor in torch 2.13, bit for bit, unless several threads share one image. Order
        (aten/src/ATen/native/cpu/SumKernel.cpp): `_cascade` over the elements of a column; outside of blocks, four
        cascades over every fourth element. Rows are summed as vectors of 8, after the elements that fill none.
    """
    outputs, numel = math.prod(axis.size for axis in plan.kept), math.prod(item_shape)
    count = math.prod(axis.size for axis in plan.summed)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), q.dtype)
        y = argument("y", (n, outputs), q.dtype)
        x_flat, y_flat = flat(x, n * numel), flat(y, n * outputs)
        with T.parallel(0, n) as image, ExitStack() as loops:
            at, out, column = image * numel, image * outputs, tirx.const(0, "int64")
            width = math.prod(axis.size for axis in plan.kept[: plan.columns])
            for number, axis in reversed(list(enumerate(plan.kept))):
                step = loops.enter_context(T.serial(0, axis.size))
                at, out = at + step * axis.stride, out + step * axis.out_stride
                if number < plan.columns:
                    width //= axis.size
                    column = column + step * width
            total = local(1, "float32")
            _zero(total, 1)
            with ExitStack() as outer:
                for summed in reversed(plan.summed[1:]):
                    step = outer.enter_context(T.serial(0, summed.size))
                    at = at + step * summed.stride
                    column = step  # finally, the column of the second dimension
                _add_column(total, x_flat, at, column, plan, q)
            value = tirx.div(total[0], splat(float(count), 1, "float32"))
            T.buffer_store(y_flat, cast(quantize_arr(value, q, 1), q.dtype, 1), [out])
    return Kernel("mean_u8", builder.get())


def _add_column(total: Buffer, x: Buffer, start: Expr, column: Expr, plan: SumPlan, q: QuantParams) -> None:
    first = plan.summed[0]

    def real(i: Expr, lanes: int) -> Expr:
        return dequantize_val(x[ramp(start + i * first.stride, lanes)], q, lanes)

    def add(value: Expr) -> None:
        T.buffer_store(total, total[0] + value, [0])

    if plan.form == "rows":
        vectors = first.size // SUM_LANES
        sums = _four_cascades(vectors, lambda i: real(i * SUM_LANES, SUM_LANES), SUM_LANES)
        rest = local(1, "float32")
        _zero(rest, 1)
        for i in range(vectors * SUM_LANES, first.size):
            T.buffer_store(rest, rest[0] + real(tirx.const(i, "int64"), 1), [0])
        for lane in range(SUM_LANES):
            T.buffer_store(rest, rest[0] + sums[lane], [0])
        add(rest[0])
        return
    cut = plan.column_count // plan.block * plan.block if plan.form == "blocks" else 0
    if cut:
        with T.If(column < cut):
            with T.Then():
                add(_cascade(first.size, lambda i: real(i, 1), 1)[0])
            with T.Else():
                add(_four_cascades(first.size, lambda i: real(i, 1), 1)[0])
    else:
        add(_four_cascades(first.size, lambda i: real(i, 1), 1)[0])


def _zero(buffer: Buffer, lanes: int) -> None:
    T.buffer_store(buffer, splat(0.0, lanes, "float32"), [ramp(0, lanes)])


def _four_cascades(count: int, value: Callable[[Expr], Expr], lanes: int) -> Buffer:
    """Emits four cascade sums over every fourth element, adds remaining elements to the first, and sums the four."""
    quarter, index = count // 4, ramp(0, lanes)

    def every_fourth(offset: int) -> Callable[[Expr], Expr]:
        return lambda i: value(i * 4 + offset)

    parts = [_cascade(quarter, every_fourth(offset), lanes) for offset in range(4)]
    first = parts[0]
    for i in range(quarter * 4, count):
        T.buffer_store(first, first[index] + value(tirx.const(i, "int64")), [index])
    for part in parts[1:]:
        T.buffer_store(first, first[index] + part[index], [index])
    return first


def _cascade(count: int, value: Callable[[Expr], Expr], lanes: int) -> Buffer:
    """Emits ATen's four-level cascade sum of value(0..count-1) and returns the buffer that holds it.

    Blocks of 2^p elements are summed into level 0, which is carried up to level 1, and so on every 2^p blocks.
    """
    power = max(4, (max(count, 1) - 1).bit_length() // 4)
    step, index = 1 << power, ramp(0, lanes)
    levels = [local(lanes, "float32") for _ in range(4)]
    for level in levels:
        _zero(level, lanes)

    def add(level: int, x: Expr) -> None:
        T.buffer_store(levels[level], levels[level][index] + x, [index])

    def carry(done: Expr, level: int) -> None:
        add(level, levels[level - 1][index])
        _zero(levels[level - 1], lanes)
        if level < 3:
            with T.If(done % (1 << (power * (level + 1))) == 0), T.Then():
                carry(done, level + 1)

    whole = count // step
    if whole:
        with T.serial(0, whole) as block:
            with T.serial(0, step) as i:
                add(0, value(block * step + i))
            carry((block + 1) * step, 1)
    if count % step:
        with T.serial(0, count % step) as i:
            add(0, value(whole * step + i))
    for level in levels[1:]:
        T.buffer_store(levels[0], levels[0][index] + level[index], [index])
    return levels[0]
