from __future__ import annotations

import numpy as np
import pytest

from quantvm.kernels.float_matmul import float_linear, float_matmul

from .conftest import run


@pytest.mark.parametrize(("rows", "depth", "columns"), [(16, 8, 64), (13, 5, 40), (3, 17, 7), (1, 64, 100), (9, 3, 32)])
def test_linear_with_a_constant(rows, depth, columns, target):
    rng = np.random.default_rng(rows)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, depth), (depth, columns)))
    got = run(float_linear(w), target, x, out_shape=(rows, columns), out_dtype="float32")
    np.testing.assert_allclose(got, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(16, 8, 64), (13, 5, 21), (3, 17, 7), (1, 6, 16)])
def test_batched_product(rows, depth, columns, target):
    rng = np.random.default_rng(rows)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, rows, depth), (3, depth, columns)))
    got = run(float_matmul(rows, depth, columns), target, a, b, out_shape=(3, rows, columns), out_dtype="float32")
    np.testing.assert_allclose(got, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)
