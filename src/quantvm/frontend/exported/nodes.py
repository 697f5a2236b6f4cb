"""The name of a node of an exported program, its source line, and the memory that it shares."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import torch

from quantvm.numerics.activations import ACTIVATIONS, LIMITS

_FILE_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_NAMES = (*LIMITS, *(f"{name}_" for name in LIMITS), *(name for row in ACTIVATIONS.values() for name in row.aten))
_ACTIVATIONS = frozenset(f"{name}.default" for name in _NAMES)
_VIEWS = frozenset(
    f"aten::{name}" for name in ("reshape.default", "flatten.using_ints", "contiguous.default", "dropout.default",
                                 "dropout_.default", "feature_dropout.default", "chunk.default", "to.dtype")
)  # fmt: skip
"""Operators whose result may share memory with their input, although their schema does not say so."""


def op_name(node: Any) -> str:
    """Returns the qualified name of a call, such as aten::conv2d.default, or operator::mul for a Python operator."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}::{target.__name__}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order::{target.name()}"
    return f"operator::{getattr(target, '__name__', target)}"


def is_quantization(node: Any) -> bool:
    """Returns whether a node quantizes or dequantizes."""
    return node.op == "call_function" and op_name(node).startswith("quantized_decomposed::")


def source(node: Any) -> str:
    """Returns the line of the user's program that a node comes from, such as model.py:12; empty if unknown."""
    found = list(_FILE_LINE.finditer(node.meta.get("stack_trace") or ""))
    own = [match for match in found if "/torch/nn/" not in match["file"]] or found
    return f"{PurePath(own[-1]['file']).name}:{own[-1]['line']}" if own else ""


def module_path(node: Any) -> str:
    """Returns the path of the innermost module that a node comes from, such as layer1.0.conv1; or empty."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    paths = [entry[0] if isinstance(entry, (tuple, list)) else str(entry) for entry in stack]
    path = paths[-1] if paths else ""
    return re.sub(r"^(L\['self'\]|L__self__|self)\.?", "", path)


def layer(node: Any) -> str:
    """Returns the name that bindings of a node are grouped under.

    An activation or a quantize belongs to the layer of its input.
    """
    while (made_from := _producer(node)) is not None:
        node = made_from
    return module_path(node) or (str(node.target) if node.op == "placeholder" else node.name)


def _producer(node: Any) -> Any | None:
    """Returns the call whose layer a quantize or an activation belongs to, or None."""
    source_node = node.all_input_nodes[0] if node.op == "call_function" and node.all_input_nodes else None
    if source_node is None or source_node.op != "call_function" or is_quantization(source_node):
        return None
    if op_name(node).startswith("quantized_decomposed::quantize"):
        return source_node
    return source_node if op_name(node) in _ACTIVATIONS and len(source_node.users) == 1 else None


def described(node: Any) -> str:
    """Returns the text for a node in errors: operator, name, module and source line."""
    at = ", ".join(part for part in (module_path(node), source(node)) if part)
    return f"{op_name(node) if node.op == 'call_function' else node.op} {node.name!r} ({at or 'no source line'})"


def writes_in_place(node: Any) -> bool:
    """Returns whether a node writes to its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def _shares_memory(node: Any) -> bool:
    if node.target is operator.getitem or op_name(node) in _VIEWS:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def stale_reads(graph: Any, constants: set[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields (write, read): a node that writes in place, and a later one that reads that memory by an older name.

    Writes among `constants` are left out, because PyTorch itself executes them.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    root: dict[Any, Any] = {}
    members: dict[Any, list[Any]] = {}
    for node in graph.nodes:
        base = node
        if node.op == "call_function" and node.all_input_nodes and _shares_memory(node):
            base = root[node.all_input_nodes[0]]
        root[node] = base
        members.setdefault(base, []).append(node)
    for write in graph.nodes:
        if write in constants or write.op != "call_function" or not writes_in_place(write) or not write.args:
            continue
        for other in members[root[write.all_input_nodes[0]]]:
            if other is not write and order[other] < order[write]:
                yield from ((write, user) for user in other.users if order[user] > order[write])
