"""Relax operators on constants, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax, tirx

from quantvm.frontend.folding import folded

X = np.arange(6, dtype=np.float32).reshape(1, 2, 3) - 2
Y = np.array([2, -3, 0.5], np.float32)
A, B = relax.const(X), relax.const(Y)
op = relax.op


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (op.reshape(A, (3, 2)), X.reshape(3, 2)),
        (op.permute_dims(A), X.transpose()),
        (op.permute_dims(A, [1, 0, 2]), X.transpose(1, 0, 2)),
        (op.squeeze(A), X[0]),
        (op.squeeze(A, [0]), X[0]),
        (op.expand_dims(A, [0, -1]), X[None, ..., None]),
        (op.astype(A, "int8"), X.astype(np.int8)),
        (op.isnan(op.divide(A, A).args[0]), np.zeros_like(X, bool)),
        (op.where(relax.const(X > 0), A, B), np.where(X > 0, X, Y)),
        (op.add(A, B), X + Y),
        (op.subtract(A, B), X - Y),
        (op.multiply(A, B), X * Y),
        (op.divide(A, B), X / Y),
        (op.sqrt(relax.const(X * X)), abs(X)),
        (op.negative(A), -X),
        (op.maximum(A, B), np.maximum(X, Y)),
        (op.minimum(A, B), np.minimum(X, Y)),
    ],
)
def test_values(call, expected):
    found = folded(call)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_what_is_not_constant_or_not_known_is_not_folded():
    variable, n = relax.Var("x", relax.TensorType([1, 2, 3], "float32")), tirx.Var("n", "int64")
    assert folded(op.add(A, variable)) is None
    assert folded(op.exp(A)) is None
    assert folded(op.reshape(A, relax.ShapeExpr([n, 6]))) is None
    assert folded(variable) is None
