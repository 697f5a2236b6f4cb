"""The layers of a TorchScript program as PyTorch computes them: extra outputs of its graph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch

from quantvm.frontend.layers import Layer, LayeredProgram
from quantvm.frontend.source import Source
from quantvm.numerics.pytorch import PyTorch


class TorchScriptSource:
    """A traced quantized module.

    Args:
        script: the module. PyTorch's engine at the time of a call must be the one that it was packed for.
    """

    side = "torch"

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        self.script = script
        self._functions: dict[bool, Any] = {}
        self._scales: list[float] | None = None

    def layers(
        self, layers: Sequence[Layer], inputs: Sequence[torch.Tensor], *, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `LayerSource.layers`."""
        with torch.inference_mode():
            if given is None:
                results = self._function(layers, isolated=False)(self.script._c, *inputs)
                self._scales = [float(scale) for scale in results[len(layers) :]]
                return list(results[: len(layers)])
            if self._scales is None:  # the model's float64 scales; a layer's parameters are float32
                self.layers(layers, inputs)
            assert self._scales is not None
            tensors = [
                _quantized(x, scale, layer.q.zero_point)
                for x, scale, layer in zip(given, self._scales, layers, strict=True)
            ]
            results = self._function(layers, isolated=True)(self.script._c, *inputs, *tensors)
            return list(results[: len(layers)])

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the model's outputs."""
        with torch.inference_mode():
            return _flat(self.script(*inputs))

    def packed_for(self, pytorch: PyTorch, example_inputs: tuple[torch.Tensor, ...]) -> LayeredProgram:
        """Returns the program with its weights packed for another engine; PyTorch packs them when it loads them."""
        from quantvm.torch_compat import quantization_engine

        from .importer import import_layers

        buffer = io.BytesIO()
        torch.jit.save(self.script, buffer)
        buffer.seek(0)
        with quantization_engine(pytorch.engine):
            return import_layers(Source(torch.jit.load(buffer), example_inputs, pytorch.engine))

    def _function(self, layers: Sequence[Layer], *, isolated: bool) -> Any:
        if isolated not in self._functions:
            self._functions[isolated] = _instrumented(self.script, layers, isolated)
        return self._functions[isolated]


def _flat(value: Any) -> list[torch.Tensor]:
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else [value]


def _quantized(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Returns a quantized tensor of these integers, in the same memory order."""
    from quantvm.frontend.layers import is_channels_last

    tensor = torch._make_per_tensor_quantized_tensor(x, scale, zero_point)
    return tensor.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else tensor


def _instrumented(script: torch.jit.ScriptModule, layers: Sequence[Layer], isolated: bool) -> Any:
    """Returns the graph as a function of the inputs, and of every layer if `isolated`: (integers, scales)."""
    graph = script.inlined_graph
    of_value = {value.debugName(): (value, node) for node in graph.nodes() for value in node.outputs()}
    outputs = []
    scales = []
    for index, layer in enumerate(layers):
        value, node = of_value[layer.value]
        copy = graph.create("aten::int_repr", [value], 1)
        scale = graph.create("aten::q_scale", [value], 1)
        scale.output().setType(torch._C.FloatType.get())
        copy.insertAfter(node)  # before anything writes to it in place
        scale.insertAfter(copy)
        outputs.append(copy.output())
        scales.append(scale.output())
        if isolated:
            value.replaceAllUsesAfterNodeWith(scale, graph.addInput(f"layer_{index}"))
    for _ in range(len(list(graph.outputs()))):
        graph.eraseOutput(0)
    results = [*outputs, *scales]
    together = graph.appendNode(graph.create("prim::TupleConstruct", results, 1))
    together.output().setType(torch._C.TupleType([output.type() for output in results]))
    graph.registerOutput(together.output())
    return torch._C._create_function_from_graph("layers", graph)
