"""The quantized tensors of a program, one by one: which operator of PyTorch makes each, and from which others.

A layer is an operator that quantizes a result of its own. `import_layers` gives the program in Relax QDQ form twice:
`chained` returns all of them besides the outputs, and `isolated` takes all of them as inputs, too, so that every layer
is computed from given inputs and no difference is handed on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tvm

from quantvm.numerics import QuantParams


@dataclass(frozen=True)
class Layer:
    """One quantized tensor.

    Attributes:
        name: module path in PyTorch where that is known, else the operator; numbered where it occurs again.
        op: qualified name of the operator, as quantized::conv2d.
        value: the tensor's name in the TorchScript graph.
        shape: PyTorch's logical shape.
        q: its parameters.
    """

    name: str
    op: str
    value: str
    shape: tuple[int, ...]
    q: QuantParams


@dataclass(frozen=True)
class LayeredProgram:
    """A quantized program and the layers that it is made of, for batches of the example's size.

    Attributes:
        script: the TorchScript module.
        layers: in order of execution.
        chained: Relax QDQ; inputs -> (outputs, every layer's integers).
        n_outputs: how many of the results of `chained` are the program's own.
        engine: PyTorch engine that it was quantized for.
    """

    script: torch.jit.ScriptModule
    layers: tuple[Layer, ...]
    chained: tvm.IRModule
    n_outputs: int
    engine: str
    example_inputs: tuple[torch.Tensor, ...]

    def isolated(self, channels_last: tuple[bool, ...]) -> tvm.IRModule:
        """Returns Relax QDQ; (inputs, every layer's integers) -> every layer's integers, each from the given ones.

        Args:
            channels_last: of each layer, whether PyTorch holds it in channels-last order, on which formulas depend.
        """
        from .torchscript import convert_isolated

        return convert_isolated(self, channels_last)


def capture(program: LayeredProgram, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Returns the integers of every layer as PyTorch computes them, in its own memory order.

    The engine is PyTorch's current one, `torch.backends.quantized.engine`.
    """
    graph = program.script.inlined_graph
    of_value = {value.debugName(): (value, node) for node in graph.nodes() for value in node.outputs()}
    outputs = []
    for layer in program.layers:
        value, node = of_value[layer.value]
        copy = graph.create("aten::int_repr", [value], 1)
        copy.insertAfter(node)  # before anything writes to it in place
        outputs.append(copy.output())
    for _ in range(len(list(graph.outputs()))):
        graph.eraseOutput(0)
    together = graph.appendNode(graph.create("prim::TupleConstruct", outputs, 1))
    together.output().setType(torch._C.TupleType([output.type() for output in outputs]))
    graph.registerOutput(together.output())
    function = torch._C._create_function_from_graph("layers", graph)
    with torch.inference_mode():
        return list(function(program.script._c, *inputs))
