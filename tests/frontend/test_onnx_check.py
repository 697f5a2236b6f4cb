"""Malformed ONNX models, each of which ONNX's checker or ONNX Runtime refuses: the message names the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError
from quantvm.frontend import from_onnx
from quantvm.frontend.onnx.check import check_onnx

from .onnx_graphs import Graph

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
INT64 = np.int64
WEIGHT = np.arange(6 * 3 * 3 * 3).reshape(6, 3, 3, 3) % 200 - 100


def network(op: str = "Conv", pool: str = "", pool_attributes: Any = None, **attributes: Any) -> Any:
    """Returns a quantized convolution, and a pool behind it if that is asked for."""
    g = Graph(["N", 3, 8, 8])
    is_transposed = op == "ConvTranspose"
    weight = WEIGHT.reshape(3, 6, 3, 3) if is_transposed else WEIGHT
    bias = g.constant(np.linspace(-1, 1, 6), np.float32)
    y = g.qdq(g.op(op, g.qdq("x"), g.weight(weight, None if is_transposed else 0), bias, **attributes), 0.031, 117)
    g.output(g.qdq(g.op(pool, y, **pool_attributes), 0.031, 117) if pool else y)
    return g.model()


def one(op: str, *operands: Any, shape: tuple[Any, ...] = ("N", 4, 6), **attributes: Any) -> Any:
    """Returns an operator of a quantized tensor and of constants."""
    g = Graph(list(shape))
    x = g.qdq("x")
    g.output(g.qdq(g.op(op, x, *(g.constant(value, dtype) for value, dtype in operands), **attributes), 0.03, 100))
    return g.model()


WINDOWS: list[tuple[str, dict[str, Any], str]] = [
    ("Conv", {"pads": [-1, -1, -1, -1]}, "pads must not contain negative"),
    ("Conv", {"pads": [0, 0, -1, 0]}, "pads must not contain negative"),
    ("Conv", {"strides": [-1, -1]}, "strides"),
    ("Conv", {"strides": [0, 0]}, "strides"),
    ("Conv", {"strides": [1]}, "strides"),
    ("Conv", {"dilations": [0, 0]}, "dilations"),
    ("Conv", {"dilations": [50, 50]}, r"negative sizes .*\(N, 6, -92, -92\)"),
    ("Conv", {"dilations": [1 << 62, 1 << 62]}, "overflow"),
    ("Conv", {"pads": [100_000] * 4}, r"more than 2147483647 elements: .*\(N, 6, 200006, 200006\)"),
    ("Conv", {"pads": [1 << 62] * 4}, "overflow"),
    ("Conv", {"pads": [1, 1]}, "pads has incorrect size"),
    ("Conv", {"group": 2}, "the weight of shape .* in 2 groups takes 6"),
    ("Conv", {"group": 0}, "group 0, expected at least 1"),
    ("Conv", {"group": -1}, "group -1"),
    ("Conv", {"kernel_shape": [5, 5]}, r"kernel_shape \(5, 5\) of a weight of shape \(6, 3, 3, 3\)"),
    ("Conv", {"kernel_shape": [0, 0]}, "kernel_shape"),
    ("Conv", {"kernel_shape": [3]}, "kernel_shape"),
    ("Conv", {"auto_pad": "SAME"}, "auto_pad 'SAME'"),
    ("Conv", {"auto_pad": "VALID", "pads": [0, 0, 0, 0]}, "auto_pad VALID and pads"),
    ("ConvTranspose", {"pads": [-1] * 4}, "pads"),
    ("ConvTranspose", {"pads": [50] * 4}, r"negative sizes .*\(N, 6, -90, -90\)"),
    ("ConvTranspose", {"dilations": [0, 0]}, "dilations"),
    ("ConvTranspose", {"output_padding": [-1, -1], "strides": [2, 2]}, "output_padding"),
    ("ConvTranspose", {"output_shape": [100, 100]}, "the weight reaches 10 pixels of 100"),
    ("ConvTranspose", {"strides": [1_000_000] * 2}, "more than 2147483647 elements"),
]
POOLS: list[tuple[dict[str, Any], str]] = [
    ({"kernel_shape": [2, 2], "pads": [-1] * 4}, "pads"),
    ({"kernel_shape": [2, 2], "pads": [2] * 4}, r"pads \(2, 2, 2, 2\) of a kernel \(2, 2\), expected smaller"),
    ({"kernel_shape": [2, 2], "strides": [0, 0]}, "strides"),
    ({"kernel_shape": [0, 0]}, "kernel_shape"),
    ({"kernel_shape": [-2, -2]}, "kernel_shape"),
    ({"kernel_shape": [100, 100]}, r"\(N, 6, -93, -93\)"),
    ({"kernel_shape": [2]}, "kernel_shape"),
    ({}, "kernel_shape"),
]
OPERATORS: list[tuple[str, Any, str]] = [
    ("Reshape", ([-2, 24], INT64), "Invalid dimension value"),
    ("Reshape", ([1 << 62, 4], INT64), "overflow|Dimension"),
    ("Tile", ([1, 10**6, 10**6], INT64), "more than 2147483647 elements"),
    ("Tile", ([1, -1, 1], INT64), "Repeats"),
    ("Tile", ([1, 2], INT64), "Repeats"),
    ("Expand", ([10**6, 10**6, 1, 4, 6], INT64), "more than 2147483647 elements"),
    ("Expand", ([-5, 1, 4, 6], INT64), "negative sizes"),
    ("Pad", ([0, 0, 10**6, 0, 0, 10**12], INT64), "more than 2147483647 elements"),
    ("Pad", ([0, 0, -9, 0, 0, 0], INT64), r"negative sizes .*\(N, 4, -3\)"),
    ("Gather", ([0, 9], INT64), "place 9 along axis 0|place 9 along axis 2"),
    ("GatherND", ([[0, 9, 1]], INT64), "place 9 along axis 1, which has 4 slices"),
    ("Transpose", None, "perm"),
    ("PRelu", (np.ones(5), np.float32), "slopes of shape"),
    ("LRN", None, "size -3"),
]
ATTRIBUTES: dict[str, dict[str, Any]] = {"Gather": {"axis": 2}, "Transpose": {"perm": [0, 0, 1]}, "LRN": {"size": -3}}


@pytest.mark.parametrize(("op", "attributes", "message"), WINDOWS)
def test_geometry_of_convolutions(op: str, attributes: dict[str, Any], message: str):
    with pytest.raises(ModelImportError, match=message) as caught:
        from_onnx(network(op, **attributes))
    assert f"node_{op.lower()}3" in str(caught.value)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("attributes", "message"), POOLS)
def test_geometry_of_pools(op: str, attributes: dict[str, Any], message: str):
    with pytest.raises(ModelImportError, match=message) as caught:
        check_onnx(network(pool=op, pool_attributes=attributes))
    assert f"node_{op.lower()}6" in str(caught.value)


@pytest.mark.parametrize(("op", "operand", "message"), OPERATORS)
def test_sizes_and_places(op: str, operand: Any, message: str):
    model = one(op, *([] if operand is None else [operand]), **ATTRIBUTES.get(op, {}))
    with pytest.raises(ModelImportError, match=message) as caught:
        from_onnx(model)
    assert f"node_{op.lower()}2" in str(caught.value)


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements"])
def test_places_that_are_written_to_exist(op: str):
    places, values = ([[0, 9, 1]], [1.0]) if op == "ScatterND" else (np.full((2, 4, 6), 99), np.ones((2, 4, 6)))
    attributes = {} if op == "ScatterND" else {"axis": 2}
    with pytest.raises(ModelImportError, match=f"{op} at node_{op.lower()}2: place 9"):
        check_onnx(one(op, (places, INT64), (values, np.float32), shape=(2, 4, 6), **attributes))


def _node(model: Any, op: str, index: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == op][index]


def _constant(model: Any, value: Any, dtype: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), "extra"))
    return "extra"


def _with_parameter(index: int, value: Any, dtype: Any, place: int = 2, op: str = "DequantizeLinear") -> Any:
    def change(model: Any) -> None:
        _node(model, op, index).input[place] = _constant(model, value, dtype)

    return change


def _weight(model: Any) -> Any:
    name = _node(model, "DequantizeLinear", 1).input[0]
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _set_axis(axis: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        _node(model, "DequantizeLinear", 1).attribute[0].i = axis

    return change


def _reverse(model: Any) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _other_domain(model: Any) -> None:
    _node(model, "Conv").domain = "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))


def _rename(model: Any) -> None:
    for node in model.graph.node:
        node.name = "same"


def _set(target: Callable[[Any], Any], field: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(target(model), field, value)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "zero point of another dtype": (
        _with_parameter(0, 3, np.int8),
        r"node_dequantizelinear1\): x_zero_point has incon",
    ),
    "float zero point": (
        _with_parameter(0, 3, np.float32, op="QuantizeLinear"),
        "node_quantizelinear0.*tensor\\(float",
    ),
    "float64 scale": (
        _with_parameter(0, 0.1, np.float64, 1, "QuantizeLinear"),
        "node_quantizelinear0.*tensor\\(double",
    ),
    "zero points of the weight, uint8": (_with_parameter(1, np.zeros(6), np.uint8), "node_dequantizelinear2"),
    "five zero points": (_with_parameter(1, np.zeros(5), np.int8), "linear2: the scale has the shape .* zero point"),
    "five scales": (_with_parameter(1, np.full(5, 0.1), np.float32, 1), "linear2: the scale has the shape"),
    "no scales": (_with_parameter(1, np.ones(0), np.float32, 1), "linear2: the scale has the shape"),
    "scales in two dimensions": (
        _with_parameter(1, np.ones((6, 1)), np.float32, 1),
        "linear2: the scale has the shape",
    ),
    "three scales, one zero point": (
        _with_parameter(0, np.full(3, 0.1), np.float32, 1, "QuantizeLinear"),
        "linear0: the scale has the shape",
    ),
    "axis 7": (_set_axis(7), "linear2: axis 7 of a tensor of 4 dimensions"),
    "axis 1": (_set_axis(1), "linear2: 6 scales for the 3 slices along axis 1"),
    "bias of one": (_with_parameter(0, np.ones(1), np.float32, 2, "Conv"), "node_conv3: a bias of shape"),
    "bias in two dimensions": (
        _with_parameter(0, np.ones((6, 1)), np.float32, 2, "Conv"),
        "node_conv3: a bias of shape",
    ),
    "float64 bias": (_with_parameter(0, np.ones(6), np.float64, 2, "Conv"), "node_conv3.*tensor\\(double"),
    "another domain": (_other_domain, "Conv of org.example at node_conv3"),
    "a domain not imported": (
        _set(lambda m: _node(m, "Conv"), "domain", "com.microsoft"),
        "Conv of com.microsoft at node",
    ),
    "opset 9999": (_set(lambda m: m.opset_import[0], "version", 9999), "of opset 9999"),
    "opset -1": (_set(lambda m: m.opset_import[0], "version", -1), "of opset -1"),
    "opset 5": (_set(lambda m: m.opset_import[0], "version", 5), "QuantizeLinear .*node_quantizelinear0"),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("", 11)), "several versions"),
    "no opset": (lambda m: m.ClearField("opset_import"), "opset"),
    "IR version 99": (_set(lambda m: m, "ir_version", 99), "IR version 99"),
    "no IR version": (lambda m: m.ClearField("ir_version"), "IR version 0"),
    "self loop": (
        lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[0].output[0]),
        "node_quantizelinear0 reads quant",
    ),
    "cycle": (
        lambda m: _node(m, "Conv").input.__setitem__(0, m.graph.output[0].name),
        "node_conv3 reads dequantizelinear5",
    ),
    "nodes in reverse": (_reverse, "node_dequantizelinear5 reads"),
    "one name": (_rename, "several nodes are called same"),
    "one output twice": (
        lambda m: m.graph.node[-1].output.__setitem__(0, m.graph.node[0].output[0]),
        "same values: quantizelinear0 .by Deq",
    ),
    "an input is written": (lambda m: m.graph.node[1].output.__setitem__(0, "x"), r"same values: x \(by Dequantize"),
    "one input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "same values: x"),
    "no output": (lambda m: m.graph.ClearField("output"), "no outputs"),
    "an output that nothing makes": (
        _set(lambda m: m.graph.output[0], "name", "other"),
        "nothing makes the outputs other",
    ),
    "a node without inputs": (lambda m: m.graph.node[0].ClearField("input"), "node_quantizelinear0"),
    "a node with two outputs": (lambda m: _node(m, "Conv").output.append("more"), "node_conv3"),
    "a node of too many inputs": (lambda m: _node(m, "Conv").input.extend(["x", "x"]), "node_conv3.*input size 5"),
    "an unknown attribute": (
        lambda m: _node(m, "Conv").attribute.append(helper.make_attribute("other", 3)),
        "attribute: other .*node_conv3",
    ),
    "an attribute of another type": (
        lambda m: _node(m, "Conv").attribute.append(helper.make_attribute("pads", "same")),
        "pads.*node_conv3",
    ),
    "an operator without a name": (_set(lambda m: _node(m, "Conv"), "op_type", ""), "node_conv3"),
    "more elements than data": (
        lambda m: _weight(m).dims.__setitem__(0, 600),
        r"c\d: it holds 162 bytes.* needs 16200",
    ),
    "fewer elements than data": (lambda m: _weight(m).dims.__setitem__(0, 5), "it holds 162 bytes.* needs 135"),
    "a negative size": (lambda m: _weight(m).dims.__setitem__(0, -6), r"its shape is \(-6, 3, 3, 3\)"),
    "a size beyond 64 bits": (lambda m: _weight(m).dims.__setitem__(0, 1 << 62), "it holds 162 bytes"),
    "an unknown data type": (_set(_weight, "data_type", 99), "its data type is 99"),
    "data elsewhere": (
        _set(_weight, "data_location", onnx.TensorProto.EXTERNAL),
        "lies in '', expected a file in the folder of the model",
    ),
    "an input of another type": (
        _set(lambda m: m.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.STRING),
        "node_quantizelinear0",
    ),
    "an input without a shape": (
        lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
        "the input x has no shape in the file",
    ),
    "a huge input": (
        _set(lambda m: m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 10**9),
        r"x: \(N, 3, 1000000000, 8\)",
    ),
    "an output of another type": (
        _set(lambda m: m.graph.output[0].type.tensor_type, "elem_type", onnx.TensorProto.INT8),
        "node_dequantizelinear5",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_models(name: str):
    change, message = CHANGES[name]
    model = network(pads=[1, 1, 1, 1])
    change(model)
    with pytest.raises((ModelImportError, UnsupportedOpError), match=message):
        from_onnx(model)


def test_what_onnx_runtime_takes_is_taken():
    """Old IR versions, initializers stored twice, wrong claims of shapes, functions, large constants in nodes."""
    model = network(pads=[1, 1, 1, 1])
    model.ir_version = 1
    model.graph.initializer.append(model.graph.initializer[1])
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.output[0].name, onnx.TensorProto.FLOAT, [1, 2, 3])
    )
    check_onnx(model)
    held = next(tensor for tensor in model.graph.initializer if tensor.name == _node(model, "Conv").input[2])
    model.graph.initializer.remove(held)
    model.graph.node.insert(0, helper.make_node("Constant", [], [held.name], value=held))
    pad = numpy_helper.from_array(np.zeros(1 << 18, np.float32), "large")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["large"], value=pad))
    check_onnx(model)
    made = helper.make_function(
        "org.example",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    model.graph.node.append(
        helper.make_node("Twice", [model.graph.output[0].name], ["z"], name="twice", domain="org.example")
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    check_onnx(model)


def test_negative_sizes_of_inputs_are_dynamic():
    model = network(pads=[1, 1, 1, 1])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert str(from_onnx(model)["main"].params[0].ty.shape[0]) == "n"


def test_no_refusal_is_another_exception():
    for model in (onnx.ModelProto(), helper.make_model(helper.make_graph([], "g", [], []))):
        with pytest.raises(QuantvmError):
            from_onnx(model)
