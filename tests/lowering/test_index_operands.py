"""Which operand holds places, and how many places there are."""

import pytest
from tvm import relax

from quantvm.lowering.index_operands import IndexOperand, index_operand_of

X, ROW = (relax.Var("x", relax.TensorType(shape, "float32")) for shape in ((2, 3, 5), (7,)))


def places(*shape):
    return relax.Var("i", relax.TensorType(shape, "int64"))


@pytest.mark.parametrize(
    ("make", "sizes", "is_per_entry"),
    [
        (lambda op: op.take(X, places(4), axis=1), (3,), False),
        (lambda op: op.take(ROW, places(4)), (7,), False),
        (lambda op: op.gather_elements(X, places(2, 3, 1), axis=2), (5,), False),
        (lambda op: op.scatter_elements(X, places(2, 3, 5), X, axis=0), (2,), False),
        (lambda op: op.gather_nd(X, places(4, 2)), (2, 3), True),
        (lambda op: op.gather_nd(X, places(2, 1), batch_dims=1), (3,), True),
        (lambda op: op.scatter_nd(X, places(1, 3), relax.Var("u", relax.TensorType((1,), "float32"))), (2, 3, 5), True),
    ],
)
def test_places_of_every_operator(make, sizes, is_per_entry):
    call = relax.BlockBuilder().normalize(make(relax.op))
    found = index_operand_of(call)
    assert found == IndexOperand(1, found.sizes, is_per_entry)
    assert tuple(map(int, found.sizes)) == sizes


def test_other_operators_hold_no_places():
    assert index_operand_of(relax.op.add(X, X)) is None
