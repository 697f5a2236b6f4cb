"""One layer of an ONNX model as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from quantvm.frontend.layers import Layer, LayerAlone


def onnx_layer_alone(model: Any, layers: Sequence[Layer], index: int, inputs: Sequence[Any]) -> LayerAlone:
    """Returns a model of the nodes from the layers that one layer reads to its own tensor.

    Its inputs are real values, which it first quantizes. Its tensors get new names that are valid everywhere in ONNX.

    Args:
        model: an `onnx.ModelProto`.
        layers: all layers.
        index: the layer's number.
        inputs: the model's inputs, float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    model_inputs = [i.name for i in model.graph.input if i.name not in stored]
    numbers = {layer.value: i for i, layer in enumerate(layers) if i != index}
    wanted = layers[index]
    reads: list[tuple[str, int]] = []
    graph_inputs: list[Any] = []
    nodes: list[Any] = []
    constants: list[Any] = []
    names: dict[str, str] = {}
    fresh = (f"v{i}" for i in count())

    def parameters(layer: Layer, name: str) -> list[str]:
        held = np.float32(layer.q.scale), np.array(layer.q.zero_point, layer.q.dtype)
        found = [f"{name}_scale", f"{name}_zero_point"]
        constants.extend(numpy_helper.from_array(np.asarray(a), n) for a, n in zip(held, found, strict=True))
        return found

    def visit(tensor: str) -> None:
        """Adds the nodes that compute a tensor."""
        if not tensor or tensor in names:
            return
        if tensor in stored:
            names[tensor] = next(fresh)
            constants.append(numpy_helper.from_array(numpy_helper.to_array(stored[tensor]), names[tensor]))
        elif tensor in numbers or tensor in model_inputs:
            is_layer = tensor in numbers
            number = numbers[tensor] if is_layer else model_inputs.index(tensor)
            x = f"x{len(reads)}"
            reads.append(("layer" if is_layer else "input", number))
            shape = layers[number].shape if is_layer else tuple(inputs[number].shape)
            graph_inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, list(shape)))
            names[tensor] = x
            if is_layer:
                names[tensor] = f"{x}_quantized"
                made = [x, *parameters(layers[number], x)]
                nodes.append(helper.make_node("QuantizeLinear", made, [names[tensor]]))
        else:
            node = makers[tensor]
            for source in node.input:
                visit(source)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            names.update({name: next(fresh) for name in node.output if name})
            copy.ClearField("name")
            copy.ClearField("doc_string")
            copy.ClearField("metadata_props")
            copy.input[:] = [names[name] if name else "" for name in node.input]
            copy.output[:] = [names[name] if name else "" for name in node.output]
            nodes.append(copy)

    visit(wanted.value)
    nodes.append(helper.make_node("DequantizeLinear", [names[wanted.value], *parameters(wanted, "y")], ["y"]))
    graph_output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(wanted.shape))
    graph = helper.make_graph(nodes, "layer", graph_inputs, [graph_output], constants)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return LayerAlone(alone, tuple(reads))
