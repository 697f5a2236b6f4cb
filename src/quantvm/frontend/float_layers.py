"""The layers of a quantized program in the float model that it was made from, matched by order of execution.

A quantized module and the float module that it was converted from run the same forward code. So their traced graphs
hold the same operators in the same order, except that a fused operator is one node in the first and two in the second.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from quantvm.errors import ModelImportError
from quantvm.numerics.activations import ACTIVATIONS, LIMITS
from quantvm.torch_compat import quiet

from .layers import LayeredProgram

_CLIPS = tuple(name for name in LIMITS if name != "aten::relu")
_FLOAT_OPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "aten::quantize_per_tensor": (("aten::clone",),),
    "quantized::conv2d": (("aten::_convolution", "aten::conv2d"),),
    "quantized::conv2d_relu": (("aten::_convolution", "aten::conv2d"), LIMITS),
    "quantized::linear": (("aten::linear", "aten::addmm"),),
    "quantized::linear_relu": (("aten::linear", "aten::addmm"), LIMITS),
    "quantized::add": (("aten::add",),),
    "quantized::add_relu": (("aten::add",), ("aten::relu",)),
    "quantized::mul": (("aten::mul",),),
    "quantized::mul_relu": (("aten::mul",), ("aten::relu",)),
    "quantized::cat": (("aten::cat",),),
    **{f"quantized::{name}": ((f"aten::{name}",),) for name in ACTIVATIONS},
    "quantized::relu6": (_CLIPS,),
    "quantized::max_pool2d": (("aten::max_pool2d",),),
}
"""Operator of a layer -> the float operators that it may replace; an aten operator replaces itself."""


class _Marked(nn.Module):
    """Replaces a QuantStub: it leaves a node in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class FloatLayers:
    """The float values of every layer of a program.

    Args:
        float_model: the model that the program was quantized from, before fusion; it is not modified.
        program: the layers.

    Raises:
        ModelImportError: the two do not run the same operators.
    """

    def __init__(self, float_model: nn.Module, program: LayeredProgram) -> None:
        with quiet(), torch.no_grad():
            model = copy.deepcopy(float_model).eval()
            fuse_model = getattr(model, "fuse_model", None)
            if fuse_model is not None:
                fuse_model()
            model = _with_marks(model)
            self._script = torch.jit.trace(model, program.example_inputs, check_trace=False)
        self._function = self._instrumented(program)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the values of every layer."""
        with torch.inference_mode():
            return list(self._function(self._script._c, *inputs))

    def _instrumented(self, program: LayeredProgram) -> Any:
        graph = self._script.inlined_graph
        outputs = []
        for node in _matched(graph, program):
            copied = graph.create("aten::clone", [node.output(), graph.insertConstant(None)], 1)
            copied.insertAfter(node)  # before anything writes to it in place
            outputs.append(copied.output())
        for constant in [n for n in graph.nodes() if n.kind() == "prim::Constant"]:
            constant.moveBefore(next(iter(graph.nodes())))
        for _ in range(len(list(graph.outputs()))):
            graph.eraseOutput(0)
        together = graph.appendNode(graph.create("prim::TupleConstruct", outputs, 1))
        together.output().setType(torch._C.TupleType([output.type() for output in outputs]))
        graph.registerOutput(together.output())
        return torch._C._create_function_from_graph("layers", graph)


def _with_marks(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import QuantStub

    for name, child in model.named_children():
        if isinstance(child, QuantStub):
            setattr(model, name, _Marked())
        else:
            _with_marks(child)
    return model


def _matched(graph: Any, program: LayeredProgram) -> list[Any]:
    """Returns the node of the float graph that computes each layer."""
    known = {op for ops in _FLOAT_OPS.values() for alternatives in ops for op in alternatives}
    known |= {layer.op.rstrip("_") for layer in program.layers if layer.op.startswith("aten::")}
    nodes = [node for node in graph.nodes() if node.kind().rstrip("_") in known]
    found, at = [], 0
    for layer in program.layers:
        wanted = _FLOAT_OPS.get(layer.op, ((layer.op.rstrip("_"),),))
        if layer.op == "aten::quantize_per_tensor":  # before it, both compute floats
            at = next((i for i in range(at, len(nodes)) if nodes[i].kind() == "aten::clone"), len(nodes))
        run = nodes[at : at + len(wanted)]
        kinds = [node.kind().rstrip("_") for node in run]
        if len(run) < len(wanted) or any(kind not in ops for kind, ops in zip(kinds, wanted, strict=True)):
            expected = ", ".join("|".join(ops) for ops in wanted)
            raise ModelImportError(
                f"the float model does not run the operators of the quantized one: at layer {layer.name} ({layer.op}) "
                f"expected {expected}, got {', '.join(kinds) or 'its end'}; side fp32 cannot be compared"
            )
        at += len(wanted)
        found.append(run[-1])
    return found
