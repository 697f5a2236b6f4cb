"""The interface of an exported program: names of inputs and structure of outputs, from its pytrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quantvm.errors import ModelImportError
from quantvm.structure import Structure, paths, take_apart


@dataclass(frozen=True, eq=False)
class Result:
    """A tensor among the leaves of a pytree."""

    value: Any


def exported_names(program: Any, leaves: Sequence[Any]) -> list[str]:
    """Returns the names of a program's input tensors: the caller's keys and keywords, else the parameters.

    Args:
        program: the exported program.
        leaves: the placeholder of each of its inputs, None for a constant one.
    """
    nodes = [node for node in leaves if node is not None]
    placed = [None if node is None else Result(node) for node in leaves]
    try:
        args, kwargs = torch.utils._pytree.tree_unflatten(placed, program.call_spec.in_spec)
        structure, found = take_apart([list(args), kwargs], lambda value: isinstance(value, Result))
    except (TypeError, ValueError, AttributeError):
        return [str(node.name) for node in nodes]
    keys = {
        found[number].value: next((str(key) for key in reversed(path) if isinstance(key, str)), "")
        for number, path in paths(structure)
    }
    counts = Counter(keys.values())
    names = [
        keys[node] if keys.get(node) and counts[keys[node]] == 1 else str(node.target) for node in nodes
    ]  # fmt: skip
    return names if len(set(names)) == len(names) else [str(node.name) for node in nodes]


def exported_call(program: Any, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call, positional and by name, with tensors in the order of the program's inputs."""
    signature = torch.export.graph_signature
    left = iter(tensors)
    leaves = [
        spec.arg.value if isinstance(spec.arg, signature.ConstantArgument) else next(left)
        for spec in program.graph_signature.input_specs if spec.kind == signature.InputKind.USER_INPUT
    ]  # fmt: skip
    return torch.utils._pytree.tree_unflatten(leaves, program.call_spec.in_spec)


def exported_outputs(program: Any, leaves: Sequence[Any]) -> tuple[Structure, list[Result]]:
    """Returns the structure of a program's outputs, and its tensors in order.

    Args:
        program: the exported program.
        leaves: its results: a Result for each tensor, and constants.

    Raises:
        ModelImportError: something in it is neither a tensor nor a container, a number, a string or None.
    """
    value = torch.utils._pytree.tree_unflatten(list(leaves), program.call_spec.out_spec)
    try:
        return take_apart(value, lambda item: isinstance(item, Result))
    except TypeError as error:
        raise ModelImportError(f"the program's output cannot be compiled: {error}") from error
