"""The layers of an exported program: the result of each quantize node, and the layers that it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quantvm.frontend.layers import ForNoEngine, Layer, LayerAlone, LayeredProgram
from quantvm.frontend.program_inputs import bind_batch, importing
from quantvm.numerics.torch_engines import QuantParams

from .alone import exported_layer_alone
from .importer import import_with_quantized, importable


def import_exported_layers(program: Any, example_inputs: Sequence[torch.Tensor]) -> LayeredProgram:
    """Returns a program that also returns every tensor it quantizes per tensor, for batches of the example's size.

    Args:
        program: a `torch.export.ExportedProgram`.
        example_inputs: float32.

    Raises:
        ModelImportError: the program takes inputs of other shapes; or as `from_exported_program`.
    """
    with importing(program):
        return _layers_of(program, tuple(example_inputs))


def _layers_of(program: Any, inputs: tuple[torch.Tensor, ...]) -> LayeredProgram:
    program = importable(program)
    dynamic, found = import_with_quantized(program)
    chained = bind_batch(dynamic, inputs, "static")
    results = chained["main"].ret_ty.fields
    layers: list[Layer] = []
    for (node, name, scale, zero_point), ty in zip(found, results[len(results) - len(found) :], strict=True):
        q = QuantParams(float(scale), int(zero_point), str(ty.dtype))  # type: ignore[arg-type]
        before = sum(layer.name.split("#")[0] == name for layer in layers)
        label = f"{name}#{before}" if before else name
        layers.append(Layer(label, _made_by(node), node.name, tuple(int(d) for d in ty.shape), q))
    n_outputs = len(results) - len(layers)
    return LayeredProgram(ExportedSource(program), tuple(layers), chained, n_outputs, inputs)


def _made_by(node: Any) -> str:
    """Returns the qualified name of the operator whose result a node quantizes."""
    (source, *_) = node.all_input_nodes
    target: Any = source.target
    return f"{target.namespace}::{target._opname}" if hasattr(target, "_opname") else "input"


class ExportedSource(ForNoEngine):
    """An exported program, which PyTorch runs node by node."""

    side, held = "torch", "an exported program"

    def __init__(self, program: Any) -> None:
        self._module = program.module()

    def layers(
        self, layers: Sequence[Layer], inputs: Sequence[torch.Tensor], *, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `LayerSource.layers`."""
        names = [layer.value for layer in layers]
        replaced = {} if given is None else dict(zip(names, given, strict=True))
        run = _Run(self._module, set(names), replaced)
        with torch.inference_mode():
            run.run(*inputs)
        return [run.found[name] for name in names]

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the model's outputs."""
        with torch.inference_mode():
            return list(torch.utils._pytree.tree_leaves(self._module(*inputs)))

    def alone(self, layers: Sequence[Layer], index: int, inputs: Sequence[torch.Tensor]) -> LayerAlone:
        """Returns one layer as a module of torch.fx, for inputs of those sizes."""
        run = _Run(self._module, set(), {})
        with torch.inference_mode():
            run.run(*inputs)
        return exported_layer_alone(self._module, layers, index, run.sizes)


class _Run(torch.fx.Interpreter):
    def __init__(self, module: Any, wanted: set[str], replaced: dict[str, torch.Tensor]) -> None:
        super().__init__(module)
        self._wanted, self._replaced = wanted, replaced
        self.found: dict[str, torch.Tensor] = {}
        self.sizes: dict[str, int] = {}

    def run_node(self, n: Any) -> Any:
        result = super().run_node(n)
        if isinstance(result, int):
            self.sizes[n.name] = result
        if n.name not in self._wanted:
            return result
        self.found[n.name] = result
        return self._replaced.get(n.name, result)
