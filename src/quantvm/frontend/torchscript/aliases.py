"""In-place writes: converters return new values instead, which is correct only if the old memory is not read again."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from quantvm.numerics.activations import ACTIVATIONS, LIMITS

_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "view", "reshape", "flatten", "transpose", "permute", "contiguous", "unsqueeze", "squeeze", "slice", "select",
        "chunk", "detach", "dropout", "feature_dropout", "expand", "split", "split_with_sizes", "unbind", "unflatten",
        "to", "type_as",
    )
) | {"prim::ListUnpack", "prim::ListConstruct", "prim::TupleConstruct", "prim::TupleUnpack"}  # fmt: skip
"""Operators whose result may share memory with their first input; PyTorch copies only in some cases."""

_WRITES = frozenset(
    (
        "aten::add_", "aten::mul_", "aten::sub_", "aten::div_", "aten::elu_", "aten::masked_fill_",
        *(f"{name}_" for name in LIMITS),
        *(name for row in ACTIVATIONS.values() for name in row.aten if name.endswith("_")),
    )
)  # fmt: skip


Region = tuple[tuple[str, str], ...]
"""A value that owns the memory, then (list, piece) for each split; pieces of one list share no memory."""


def stale_reads(graph: Any, known: Container[str] = ()) -> Iterator[tuple[Any, Any]]:
    """Yields (write, read): a node that writes in place, and a later one that reads the same memory by an older name.

    In a traced graph, later reads of the written tensor itself read the result of the write. But reads of an earlier
    view of that tensor, or of the tensor that it is a view of, do not. Values in `known` share their memory at import
    as they do in PyTorch, so writes to them are left out.
    """
    regions: dict[str, Region] = {}
    made: dict[str, int] = {}
    writes: list[tuple[int, Region, Any]] = []
    for index, node in enumerate([*graph.nodes(), graph.return_node()]):
        inputs, outputs = ([v.debugName() for v in values] for values in (node.inputs(), node.outputs()))
        for name in inputs:
            region = regions.get(name, (("", name),))
            for written_at, written, write in writes:
                if written_at > made.get(name, -1) and _overlap(region, written):
                    yield write, node
        made.update(dict.fromkeys(outputs, index))
        if inputs and node.kind() in _VIEWS | _WRITES:
            region = regions.get(inputs[0], (("", inputs[0]),))
            is_cut = node.kind() == "prim::ListUnpack"
            regions.update({name: (*region, (inputs[0], name)) if is_cut else region for name in outputs})
        if node.kind() in _WRITES and inputs[0] not in known:
            writes.append((index, region, node))


def _overlap(a: Region, b: Region) -> bool:
    for (list_a, piece_a), (list_b, piece_b) in zip(a, b, strict=False):
        if piece_a != piece_b:
            # two chunks of one tensor may have pieces in the same memory, but pieces of one list never overlap
            return list_a != list_b
    return True
