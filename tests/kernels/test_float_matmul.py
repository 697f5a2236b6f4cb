from __future__ import annotations

import numpy as np
import pytest

from quantvm.kernels.float.float_matmul import NARROW, Tile, float_linear, float_matmul, select_tile
from quantvm.tvm_compat import make_target

from .conftest import run

TILES = [NARROW, Tile(6, 1), Tile(8, 2)]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(16, 8, 64), (13, 5, 40), (3, 17, 7), (1, 64, 100), (9, 3, 32)])
def test_linear_with_a_constant(rows, depth, columns, tile, target):
    rng = np.random.default_rng(rows)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, depth), (depth, columns)))
    got = run(float_linear(w, tile), target, x, out_shape=(rows, columns), out_dtype="float32")
    np.testing.assert_allclose(got, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(16, 8, 64), (13, 5, 21), (3, 17, 7), (1, 6, 16)])
def test_batched_product(rows, depth, columns, tile, target):
    rng = np.random.default_rng(rows)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, rows, depth), (3, depth, columns)))
    got = run(float_matmul(rows, depth, columns, tile), target, a, b, out_shape=(3, rows, columns), out_dtype="float32")
    np.testing.assert_allclose(got, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cpu", "tile"),
    [("x86-64", NARROW), ("haswell", Tile(6, 1)), ("alderlake", Tile(6, 1)), ("skylake-avx512", Tile(8, 2))],
)
def test_a_tile_is_chosen_for_the_registers(cpu, tile):
    assert select_tile(make_target({"mcpu": cpu, "mtriple": "x86_64-linux-gnu"})) == tile
