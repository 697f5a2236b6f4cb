"""Which operand of an operator holds places in another tensor, and how many places there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantvm.qdq.expressions import op_name, shape_of
from quantvm.sizes import product


@dataclass(frozen=True)
class IndexOperand:
    """An operand of integers that name places.

    Attributes:
        operand: its number.
        sizes: how many places there are: one size, or one for each entry of the operand's last dimension.
        is_per_entry: whether `sizes` is the latter.
    """

    operand: int
    sizes: tuple[Any, ...]
    is_per_entry: bool


def index_operand_of(call: Any) -> IndexOperand | None:
    """Returns the operand of a call that holds places; None if none does."""
    name = op_name(call)
    if name == "relax.take":
        shape = shape_of(call.args[0])
        size = product(shape) if call.attrs.axis is None else shape[int(call.attrs.axis)]
        return IndexOperand(1, (size,), is_per_entry=False)
    if name in ("relax.gather_elements", "relax.scatter_elements"):
        return IndexOperand(1, (shape_of(call.args[0])[int(call.attrs.axis)],), is_per_entry=False)
    if name in ("relax.gather_nd", "relax.scatter_nd"):
        first = int(getattr(call.attrs, "batch_dims", 0) or 0)
        depth = shape_of(call.args[1])[-1]
        return IndexOperand(1, tuple(shape_of(call.args[0])[first : first + depth]), is_per_entry=True)
    return None
