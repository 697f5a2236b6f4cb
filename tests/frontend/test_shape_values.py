"""Values that an ONNX graph derives from the sizes of tensors; a dynamic size is an unknown number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402  (needs onnx)

from quantvm.frontend.onnx.graph import Constants  # noqa: E402
from quantvm.frontend.onnx.shape_values import fold_known_sizes, known_sizes  # noqa: E402

NUMBERS = {"two": [2], "minus": [-3], "seven": 7, "zero": [0], "one": [1], "three": [3], "first": 0, "second": 1}


def graph_of(*nodes: Any) -> Any:
    constants = [
        helper.make_tensor(name, onnx.TensorProto.INT64, [] if isinstance(value, int) else [1], np.ravel(value))
        for name, value in NUMBERS.items()
    ]
    shape = helper.make_node("Shape", ["x"], ["shape"])
    return helper.make_graph([shape, *nodes], "g", [], [], constants)


def value(*nodes: Any, dims: tuple[Any, ...] = ("n", 4, 5)) -> Any:
    """The value of the last node's result, as a list or number; "unknown" if nothing is known."""
    graph = graph_of(*nodes)
    found = known_sizes(graph, {"x": list(dims)}, Constants(graph))
    name = graph.node[-1].output[0]
    return found[name].tolist() if name in found else "unknown"


def node(op: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), ["y"], **attributes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("Identity", "shape"), [None, 4, 5]),
        (node("Shape", "x", start=1), [4, 5]),
        (node("Shape", "x", start=-2, end=-1), [4]),
        (node("Gather", "shape", "second"), 4),
        (node("Gather", "shape", "first"), None),
        (node("Gather", "shape", "second", axis=1), "unknown"),
        (node("Slice", "shape", "one", "three"), [4, 5]),
        (node("Slice", "shape", "zero", "three", "zero", "two"), [None, 5]),
        (node("Slice", "shape", "three", "zero", "zero", "minus"), "unknown"),
        (node("Concat", "two", "shape", axis=0), [2, None, 4, 5]),
        (node("Add", "shape", "two"), [None, 6, 7]),
        (node("Sub", "two", "shape"), [None, -2, -3]),
        (node("Mul", "shape", "minus"), [None, -12, -15]),
        (node("Div", "shape", "minus"), [None, -1, -1]),  # towards zero
        (node("Div", "shape", "zero"), [None, None, None]),
        (node("Div", "minus", "shape"), [None, 0, 0]),
        (node("Max", "shape", "seven"), [None, 7, 7]),
        (node("Min", "shape", "seven"), [None, 4, 5]),
        (node("Cast", "shape", to=onnx.TensorProto.INT32), [None, 4, 5]),
        (node("Cast", "shape", to=onnx.TensorProto.FLOAT), "unknown"),
        (node("ReduceProd", "shape"), "unknown"),
        (node("Relu", "shape"), "unknown"),
        (node("Add", "two", "three"), "unknown"),  # no size takes part
    ],
    ids=lambda each: each.op_type if hasattr(each, "op_type") else "",
)
def test_values(made, expected):
    assert value(made) == expected


def test_products_of_known_sizes():
    assert value(node("ReduceProd", "shape"), dims=(3, 4, 5)) == [60]
    assert value(node("ReduceProd", "shape", keepdims=0), dims=(3, 4, 5)) == 60


def test_single_numbers_gain_and_lose_their_dimension():
    gathered = helper.make_node("Gather", ["shape", "second"], ["size"])
    assert value(gathered, helper.make_node("Unsqueeze", ["size", "zero"], ["y"])) == [4]
    kept = helper.make_node("Unsqueeze", ["size", "zero"], ["vector"])
    assert value(gathered, kept, helper.make_node("Squeeze", ["vector"], ["y"])) == 4
    assert value(node("Squeeze", "shape")) == "unknown"


def test_only_what_is_known_entirely_becomes_a_constant():
    graph = graph_of(
        helper.make_node("Gather", ["shape", "second"], ["size"]), helper.make_node("Add", ["size", "two"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["small"], to=onnx.TensorProto.INT32),
    )  # fmt: skip
    assert fold_known_sizes(graph, {"x": ["n", 4, 5]})
    assert [each.op_type for each in graph.node] == ["Shape"]
    constants = Constants(graph)
    assert (constants.get("size").tolist(), constants.get("sum").tolist()) == (4, [6])
    assert constants.get("small").dtype == np.int32
    assert not fold_known_sizes(graph, {"x": ["n", 4, 5]})
