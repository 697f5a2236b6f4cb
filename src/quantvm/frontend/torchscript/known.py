"""Values that are known when a program is imported; PyTorch itself computes everything that depends only on them.

They are `torch.Tensor`s that share memory as in the program, so that in-place writes (`fill_` on slices of a mask) have
the same effect as in PyTorch. Tensors of the model are copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from quantvm.frontend.builder import constant

TAKES_KNOWN = frozenset({
    "aten::Int", "aten::Float", "aten::Bool", "aten::IntImplicit", "aten::ScalarImplicit", "aten::len", "aten::size",
    "aten::dim", "aten::__getitem__", "aten::__is__", "aten::__isnot__",
    "aten::__contains__", "aten::keys", "aten::values", "aten::items",
})  # fmt: skip
"""Converters, besides those of `prim::`, that take known values unchanged; others get Relax constants and numbers."""

_MAKES_KNOWN = TAKES_KNOWN | {"aten::new_zeros", "aten::new_ones", "aten::new_full", "prim::NumToTensor"}
_STRUCTURAL = frozenset({
    "prim::ListConstruct", "prim::TupleConstruct", "prim::DictConstruct", "prim::ListUnpack", "prim::TupleUnpack",
    "prim::unchecked_cast",
})  # fmt: skip
_NEVER_COMPUTED = ("aten::quantize_per", "aten::dequantize", "aten::dropout", "aten::rand", "aten::bernoulli")


def is_known(value: Any) -> bool:
    """Returns whether a value consists of numbers, strings and tensors of known content."""
    if isinstance(value, (list, tuple)):
        return all(is_known(item) for item in value)
    if isinstance(value, torch.Tensor):
        return not value.is_quantized
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))


def is_computable(kind: str) -> bool:
    """Returns whether PyTorch may run the operator at import, if its inputs are known."""
    return kind.startswith("aten::") and kind not in TAKES_KNOWN and not kind.startswith(_NEVER_COMPUTED)


def compute(node: Any, arguments: list[Any]) -> Any:
    """Returns the result of a node's operator in PyTorch, for known arguments.

    Raises:
        RuntimeError, TypeError: as the operator does.
    """
    schema = torch._C.parse_schema(node.schema())
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"))
    operator = getattr(packet, schema.overload_name or "default")
    pairs = list(zip(schema.arguments, arguments, strict=True))
    named = {argument.name: value for argument, value in pairs if argument.kwarg_only}
    with torch.no_grad():
        return operator(*(value for argument, value in pairs if not argument.kwarg_only), **named)


def as_arguments(values: Iterable[Any]) -> list[Any]:
    """Converts values for converters: tensors to Relax constants, and tensors without dimensions to numbers."""
    return [_as_argument(value) for value in values]


def _as_argument(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_argument(item) for item in value]
    if not isinstance(value, torch.Tensor) or value.is_quantized:
        return value
    array = value.detach().numpy()
    return array.item() if array.ndim == 0 else constant(array, str(array.dtype))


def known_values(nodes: Iterable[Any], outside: Iterable[str] = ()) -> set[str]:
    """Returns the names of the values that can be known at import, as far as the graph tells.

    Args:
        nodes: the nodes of a graph or block.
        outside: names of known values that a block reads.
    """
    known = set(outside)
    for node in nodes:
        kind, outputs = node.kind(), [value.debugName() for value in node.outputs()]
        inputs_known = all(value.debugName() in known for value in node.inputs())
        always = kind in _MAKES_KNOWN or kind in ("prim::Constant", "prim::GetAttr")
        if always or (inputs_known and (is_computable(kind) or kind in _STRUCTURAL)):
            known.update(outputs)
    return known


def without_converter(nodes: Iterable[Any], known: set[str], has_converter: Callable[[str], bool]) -> Iterator[Any]:
    """Yields the nodes that can neither be converted nor, as far as the graph tells, be computed at import."""
    for node in nodes:
        kind = node.kind()
        computed = is_computable(kind) and all(value.debugName() in known for value in node.inputs())
        if not computed and not has_converter(kind) and kind not in ("prim::Constant", "prim::GetAttr"):
            yield node
