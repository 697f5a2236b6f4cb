"""Reading ONNX graphs: attributes, constants, consumers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from quantvm.errors import ModelImportError


def attribute(node: Any, name: str, default: Any) -> Any:
    """Returns the value of a node's attribute (strings as str), or the default if it has none of that name."""
    from onnx import helper

    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def set_attribute(node: Any, name: str, value: Any) -> None:
    """Sets an attribute of a node; None removes it."""
    from onnx import helper

    kept = [found for found in node.attribute if found.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def node_name(node: Any) -> str:
    """Returns a node's name, or else that of its first output."""
    return str(node.name or next((out for out in node.output if out), node.op_type))


def subgraphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and all graphs nested in its nodes."""
    yield graph
    for node in graph.node:
        for found in node.attribute:
            for inner in [found.g, *found.graphs]:
                if inner.node or inner.output:
                    yield from subgraphs(inner)


def consumers(graph: Any) -> dict[str, list[Any]]:
    """Returns the nodes that read each value; reads in a nested graph count as reads of the node that holds it."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        names = set(node.input)
        for held in node.attribute:
            for inner in [held.g, *held.graphs]:
                names |= {name for part in subgraphs(inner) for n in part.node for name in n.input}
        for name in names:
            found.setdefault(name, []).append(node)
    return found


class Constants:
    """The initializers of a graph as arrays, decoded on first use."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, name: str) -> np.ndarray | None:
        """Returns the array of a name, or None if it is not a constant.

        Raises:
            ModelImportError: its data does not match its shape and dtype.
        """
        from onnx import numpy_helper

        if name not in self._arrays:
            if name not in self._stored:
                return None
            try:
                self._arrays[name] = numpy_helper.to_array(self._stored[name])
            except (ValueError, TypeError) as error:
                raise ModelImportError(
                    f"the file is damaged: the constant {name!r} cannot be read ({error})"
                ) from error
        return self._arrays[name]

    def add(self, name: str, value: np.ndarray) -> None:
        """Stores an array under a name that no initializer has yet."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self._graph.initializer.append(tensor)
        self._stored[name] = self._graph.initializer[-1]
        self._arrays[name] = value

    def add_new(self, name: str, value: np.ndarray) -> str:
        """Stores an array under an unused name that begins with `name`, and returns the new name."""
        taken = {out for node in self._graph.node for out in node.output} | set(self._stored)
        taken |= {i.name for i in self._graph.input}
        count = 0
        while (found := name if not count else f"{name}_{count}") in taken:
            count += 1
        self.add(found, value)
        return found


__all__ = ["Constants", "attribute", "consumers", "node_name", "set_attribute", "subgraphs"]
