"""One layer of an exported program as a module of its own."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from quantvm.frontend.layers import Layer, LayerAlone

_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


def exported_layer_alone(module: Any, layers: Sequence[Layer], index: int, sizes: Mapping[str, int]) -> LayerAlone:
    """Returns the nodes from the layers that one layer reads to its own tensor; they first quantize their inputs.

    Args:
        module: the program's module, of `torch.fx`.
        layers: all layers.
        index: the layer's number.
        sizes: the values of nodes that compute integers from the sizes of these inputs, by node name.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    numbers = {layer.value: i for i, layer in enumerate(layers) if i != index}
    wanted = nodes[layers[index].value]
    needed = _needed(wanted, {*numbers, *sizes})
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    reads: list[tuple[str, int]] = []
    constants: dict[str, torch.Tensor] = {}
    model_inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in needed:
        if node.name in numbers:
            reads.append(("layer", numbers[node.name]))
        elif node.op == "placeholder":
            reads.append(("input", model_inputs.index(node)))
        else:
            continue
        env[node] = graph.placeholder(f"x{len(reads) - 1}")
    for node in needed:
        if node.name in sizes:
            env[node] = sizes[node.name]
        elif node.name in numbers:
            env[node] = _quantized(graph, node, env[node], layers[numbers[node.name]])
        elif node.op == "get_attr":
            name = f"c{len(constants)}"
            constants[name] = operator.attrgetter(node.target)(module)
            env[node] = graph.get_attr(name)
        elif node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(_dequantized(graph, wanted, env[wanted], layers[index]))
    return LayerAlone(fx.GraphModule(constants, graph), tuple(reads))


def _needed(wanted: fx.Node, known: set[str]) -> list[fx.Node]:
    """Returns the nodes that a node is computed from, back to the known ones, in order of execution."""
    found, waiting = {wanted}, [wanted]
    while waiting:
        node = waiting.pop()
        if node.name in known:
            continue
        for source in node.all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return [node for node in wanted.graph.nodes if node in found]


def _parameters(node: fx.Node, layer: Layer) -> tuple[Any, ...]:
    return layer.q.scale, layer.q.zero_point, *node.args[3:5], _DTYPES[layer.q.dtype]


def _quantized(graph: fx.Graph, node: fx.Node, x: Any, layer: Layer) -> fx.Node:
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return graph.call_function(quantize, (x, *_parameters(node, layer)))


def _dequantized(graph: fx.Graph, node: fx.Node, x_int: Any, layer: Layer) -> fx.Node:
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return graph.call_function(dequantize, (x_int, *_parameters(node, layer)))
