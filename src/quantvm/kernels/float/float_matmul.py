"""Matrix products of float32, for the parts of a network that are not quantized.

A tile of rows x vectors of accumulators stays in registers during the whole reduction. A constant right side is packed
beforehand into panels as wide as a tile; any other is read in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.builder import (
    LANES,
    Buffer,
    Expr,
    Kernel,
    argument,
    ceil_div,
    flat,
    fma,
    for_vectors,
    local,
    prim_func,
    ramp,
    splat,
    store_prefix,
    target_features,
)


@dataclass(frozen=True)
class Tile:
    """Accumulators that are in registers at the same time: `rows` times `vectors` vectors of LANES columns."""

    rows: int
    vectors: int

    @property
    def columns(self) -> int:
        """Number of columns of a tile."""
        return self.vectors * LANES


NARROW = Tile(3, 1)
"""Uses twelve registers of 128 bits for accumulators, out of sixteen."""


def select_tile(target: tvm.target.Target) -> Tile:
    """Returns the tile for a target whose registers hold both the accumulators and the loaded operands."""
    features = target_features(target)
    if "avx512f" in features:
        return Tile(8, 2)
    return Tile(6, 1) if "avx2" in features else NARROW


def float_linear(weight: np.ndarray, tile: Tile = NARROW) -> Kernel:
    """Returns x @ weight of (rows, K) float32 and a constant (K, N) float32.

    Exactness: each element is one chain of FMAs over K = 0, 1, ...; other orders give other last bits.
    """
    depth, columns = weight.shape
    panels = ceil_div(columns, tile.columns)
    padded = np.zeros((depth, panels * tile.columns), np.float32)
    padded[:, :columns] = weight
    packed = np.ascontiguousarray(padded.reshape(depth, panels, tile.columns).transpose(1, 0, 2))
    with prim_func() as builder:
        T.func_name("main")
        rows = tirx.Var("rows", "int64")
        x = argument("x", (rows, depth), "float32")
        w = argument("w", packed.shape, "float32")
        y = argument("y", (rows, columns), "float32")
        x_flat, y_flat, w_flat = flat(x, rows * depth), flat(y, rows * columns), flat(w, packed.size)
        row_tasks = (rows + (tile.rows - 1)) // tile.rows
        # panels outermost: each stays in the cache while all rows use it
        with T.parallel(0, panels * row_tasks) as task:
            panel, first = task // row_tasks, task % row_tasks * tile.rows

            def emit(row: Expr, height: int) -> None:
                acc = _accumulate(
                    x_flat, row * depth, depth, height, w_flat, panel * (depth * tile.columns), tile.columns, LANES,
                    tile.vectors,
                )  # fmt: skip
                for j in range(tile.vectors):
                    column = panel * tile.columns + j * LANES
                    for i in range(height):
                        value = acc[i * tile.vectors + j][ramp(0)]
                        _store(y_flat, (row + i) * columns, column, columns, value, columns % tile.columns == 0)

            with T.If(first + tile.rows <= rows):
                with T.Then():
                    emit(first, tile.rows)
                with T.Else():
                    _emit_rest(first, rows - first, tile.rows, emit)
    return Kernel("float_linear_f32", builder.get(), (packed,))


def _emit_rest(first: Expr, rest: Expr, below: int, emit: Callable[[Expr, int], None]) -> None:
    """Emits the last `rest` rows, fewer than `below`, in blocks whose heights are powers of two."""
    for height in (4, 2, 1):
        if height < below:
            with T.If(rest % (2 * height) >= height), T.Then():
                emit(first + rest // (2 * height) * (2 * height), height)


def _store(y: Buffer, row: Expr, column: Expr, columns: int, value: Expr, fits: bool) -> None:
    """Emits the store of a vector at `column`, without lanes beyond the last column; if it `fits`, there are none."""
    rest = columns % LANES
    if fits:
        T.buffer_store(y, value, [ramp(row + column)])
        return
    with T.If(column + LANES <= columns):
        with T.Then():
            T.buffer_store(y, value, [ramp(row + column)])
        with T.Else():
            if rest:
                with T.If(column < columns), T.Then():
                    store_prefix(y, [], row + column, value, rest, "float32")
            else:
                T.evaluate(0)


def float_matmul(rows: int, depth: int, columns: int, tile: Tile = NARROW) -> Kernel:
    """Returns a @ b of (batch, rows, depth) and (batch, depth, columns) float32; exact as `float_linear`."""
    with prim_func() as builder:
        T.func_name("main")
        batch = tirx.Var("batch", "int64")
        a = argument("a", (batch, rows, depth), "float32")
        b = argument("b", (batch, depth, columns), "float32")
        y = argument("y", (batch, rows, columns), "float32")
        a_flat, b_flat = flat(a, batch * (rows * depth)), flat(b, batch * (depth * columns))
        y_flat = flat(y, batch * (rows * columns))
        row_tasks = ceil_div(rows, tile.rows)
        with T.parallel(0, batch * row_tasks) as task:
            item, first = task // row_tasks, task % row_tasks * tile.rows

            def emit_rows(row: Expr, height: int) -> None:
                def emit(column: Expr, lanes: int) -> None:
                    acc = _accumulate(
                        a_flat, (item * rows + row) * depth, depth, height, b_flat, item * (depth * columns) + column,
                        columns, lanes, 1,
                    )  # fmt: skip
                    for i in range(height):
                        at = (item * rows + row + i) * columns + column
                        T.buffer_store(y_flat, acc[i][ramp(0, lanes)], [ramp(at, lanes)])

                for_vectors(columns, emit)

            rest = rows % tile.rows
            if not rest:
                emit_rows(first, tile.rows)
            elif rows < tile.rows:
                emit_rows(first, rest)
            else:
                with T.If(first + tile.rows <= rows):
                    with T.Then():
                        emit_rows(first, tile.rows)
                    with T.Else():
                        emit_rows(first, rest)
    return Kernel("float_matmul_f32", builder.get())


def _accumulate(
    a: Buffer, a_at: Expr, a_stride: int, height: int, b: Buffer, b_at: Expr, b_stride: int, lanes: int, vectors: int
) -> list[Any]:
    """Emits the reduction of a tile; accumulator i*vectors+j belongs to row i and vector j."""
    acc = [local(lanes, "float32") for _ in range(height * vectors)]
    whole = ramp(0, lanes)
    for register in acc:
        T.buffer_store(register, splat(0.0, lanes, "float32"), [whole])
    with T.serial(0, a_stride) as k:
        for j in range(vectors):
            loaded = local(lanes, "float32")
            T.buffer_store(loaded, b[ramp(b_at + k * b_stride + j * lanes, lanes)], [whole])
            for i in range(height):
                register = acc[i * vectors + j]
                value = fma(splat(a[a_at + i * a_stride + k], lanes), loaded[whole], register[whole], lanes)
                T.buffer_store(register, value, [whole])
    return acc
