"""Computes the values that an ONNX graph derives from sizes of tensors; a dynamic size is an unknown number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Constants, attribute

_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32))
_LONGEST = 64


def known_sizes(graph: Any, shapes: dict[str, list[Any]], constants: Constants) -> dict[str, np.ndarray]:
    """Returns the values that follow from sizes: arrays of ints, with None for elements that depend on a dynamic size.

    Args:
        graph: a graph in topological order.
        shapes: shapes of its values; a dynamic size is anything but an int.
        constants: the graph's constants.
    """
    found: dict[str, np.ndarray] = {}

    def value(name: str) -> np.ndarray | None:
        if name in found:
            return found[name]
        array = constants.get(name) if name else None
        if array is None or array.dtype not in _INTEGERS or array.size > _LONGEST:
            return None
        return array.astype(object)

    for node in graph.node:
        made = None
        if node.op_type == "Shape" and node.input[0] in shapes:
            dims = [d if isinstance(d, int) else None for d in shapes[node.input[0]]]
            made = _array(dims[attribute(node, "start", 0) : attribute(node, "end", None)])
        elif node.op_type in _OPERATORS and any(name in found for name in node.input):
            operands = [value(name) for name in node.input if name]
            if all(operand is not None for operand in operands):
                made = _OPERATORS[node.op_type](node, *operands)
        if made is not None and made.size <= _LONGEST:
            found[node.output[0]] = made
    return found


def fold_known_sizes(graph: Any, shapes: dict[str, list[Any]]) -> bool:
    """Replaces values that follow from known sizes by constants; returns whether there were any."""
    constants = Constants(graph)
    found = known_sizes(graph, shapes, constants)
    outputs = {output.name for output in graph.output}
    gone = []
    for node in graph.node:
        value = found.get(node.output[0]) if node.output else None
        if value is None or node.output[0] in outputs or any(item is None for item in value.ravel()):
            continue
        dtype = np.int32 if node.op_type == "Cast" and attribute(node, "to", 7) == 6 else np.int64
        constants.add(node.output[0], value.astype(dtype))
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    return bool(gone)


def _array(items: Any) -> np.ndarray:
    made = np.empty(len(items), object)
    made[:] = items
    return made


def _ints(x: np.ndarray | None) -> list[int] | None:
    if x is None or any(item is None for item in x.ravel()):
        return None
    return [int(item) for item in x.ravel()]


def _gather(node: Any, x: np.ndarray, places: np.ndarray) -> np.ndarray | None:
    if _ints(places) is None or attribute(node, "axis", 0) != 0 or x.ndim != 1:
        return None
    return np.asarray(x[places.astype(np.int64)], object)


def _slice(node: Any, x: np.ndarray, *given: np.ndarray) -> np.ndarray | None:
    bounds = [_ints(array) for array in given]
    if x.ndim != 1 or any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    starts = [bound[0] for bound in bounds if bound] or attribute(node, "starts", [0])[:1] + attribute(node, "ends", [])
    start, end = starts[:2]
    step = starts[3] if len(starts) > 3 else 1
    if step < 0:
        return None
    return x[start:end:step]


def _concat(node: Any, *parts: np.ndarray) -> np.ndarray | None:
    return np.concatenate(parts) if all(part.ndim == 1 for part in parts) else None


def _squeeze(node: Any, x: np.ndarray, *axes: np.ndarray) -> np.ndarray | None:
    return x.reshape(()) if x.size == 1 else None


def _unsqueeze(node: Any, x: np.ndarray, *axes: np.ndarray) -> np.ndarray | None:
    return x.reshape(1) if x.ndim == 0 else None


def _cast(node: Any, x: np.ndarray) -> np.ndarray | None:
    return x if attribute(node, "to", 0) in (6, 7) else None


def _product(node: Any, x: np.ndarray, *axes: np.ndarray) -> np.ndarray | None:
    numbers = _ints(x)
    if numbers is None or x.ndim != 1:
        return None
    total = np.array(int(np.prod(numbers, dtype=np.int64)), object)
    return total.reshape(1) if attribute(node, "keepdims", 1) else total


def _each(function: Callable[[int, int], int]) -> Callable[..., np.ndarray | None]:
    def apply(node: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        def one(x: Any, y: Any) -> Any:
            return None if x is None or y is None else function(int(x), int(y))

        return np.asarray(np.frompyfunc(one, 2, 1)(a, b), object)

    return apply


def _quotient(a: int, b: int) -> Any:
    """Returns a / b rounded towards zero, as ONNX divides integers; None if that is undefined."""
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_OPERATORS: dict[str, Callable[..., np.ndarray | None]] = {
    "Identity": lambda node, x: x,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "ReduceProd": _product,
    "Add": _each(lambda a, b: a + b),
    "Sub": _each(lambda a, b: a - b),
    "Mul": _each(lambda a, b: a * b),
    "Div": _each(_quotient),
    "Max": _each(max),
    "Min": _each(min),
}


__all__ = ["fold_known_sizes", "known_sizes"]
