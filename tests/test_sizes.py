"""Arithmetic on sizes that may be symbolic."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm_ffi import structural_equal

from quantvm.sizes import product, quotient

N, M = tirx.Var("n", "int64"), tirx.Var("m", "int64")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], 1),
        ([2, tirx.IntImm("int64", 3), 5], 30),
        ([N], N),
        ([3, N, 3], N * 9),
        ([N * 4, M, 9], N * M * 36),
        ([N, N], N * N),
        ([N, 0], 0),
        ([N + 1, 2], (N + 1) * 2),  # a sum is one factor
    ],
)
def test_products(sizes, expected):
    found = product(sizes)
    assert type(found) is type(expected)
    assert found == expected if isinstance(expected, int) else structural_equal(found, expected)


@pytest.mark.parametrize(
    ("sizes", "divisors", "expected"),
    [
        ([12], [4], 3),
        ([12], [5], None),
        ([12], [0], None),
        ([0], [4], 0),
        ([N, 12], [4], N * 3),
        ([N, 3], [2], None),  # whole for some n only
        ([N, 12], [N, 6], 2),
        ([N, N, M], [N], N * M),
        ([N, M], [N, N], None),
        ([6], [N], None),
        ([N + 1, 4], [N + 1], 4),
    ],
)
def test_quotients_are_whole_for_any_value_of_the_symbols(sizes, divisors, expected):
    found = quotient(sizes, divisors)
    if expected is None or isinstance(expected, int):
        assert found == expected
    else:
        assert structural_equal(found, expected)
