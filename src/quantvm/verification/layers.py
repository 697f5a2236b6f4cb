"""Finds the first quantized tensor of a model that the definition of its numerics does not explain, or that differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantvm.frontend import LayeredProgram
from quantvm.frontend.layer_graphs import outputs_of_layers
from quantvm.runtime.target import Machine
from quantvm.storage.scratch import scratch_folder
from quantvm.verification.qdq_in_float import QdqInFloat, unknown_ops

from .ties import NEAR
from .torch_state import TorchState

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class LayerDifference:
    """The first layer that is wrong.

    Attributes:
        name, op: of the layer.
        n, different, max_steps: its elements, how many differ, and by how many steps at most.
        who: whose integers are wrong, as a clause.
    """

    name: str
    op: str
    n: int
    different: int
    max_steps: float
    who: str

    @property
    def text(self) -> str:
        """One sentence."""
        return (
            f"The first layer that differs is {self.name} ({self.op}): {self.who}, {self.different:,} of {self.n:,} "
            f"integers, by up to {self.max_steps:.4g} steps"
        )


def layered_program(
    model_or_path: Any, nested: Callable[[Sequence[Any]], Any], inputs: Sequence[np.ndarray], state: TorchState
) -> Any:
    """Returns the model with all quantized tensors as outputs, for inputs of these sizes.

    Args:
        model_or_path: as for `quantvm.compile`.
        nested: nests inputs as `quantvm.compile` was given them.
        inputs: flat.
        state: of PyTorch; its engine matters only if the model is for one.

    Raises:
        QuantvmError: it cannot be imported in this form.
    """
    from quantvm.frontend import import_layers
    from quantvm.frontend.entry import export_module, format_of, needs_export
    from quantvm.frontend.exported.layers import import_exported_layers
    from quantvm.frontend.file_layers import import_file_layers
    from quantvm.frontend.source import Source

    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
    if type(model_or_path).__name__ == "ModelProto":
        with scratch_folder("verify") as folder:
            path = folder / "model.onnx"
            path.write_bytes(model_or_path.SerializeToString())
            return import_file_layers(path, tensors)
    if isinstance(model_or_path, (str, Path)):
        held = format_of(Path(model_or_path))
        if held in ("onnx", "tflite"):
            return import_file_layers(Path(model_or_path), tensors)
        if held == "exported":
            from quantvm.frontend.exported.importer import load_program

            return import_exported_layers(load_program(Path(model_or_path)), tensors)
    elif isinstance(model_or_path, torch.export.ExportedProgram):
        return import_exported_layers(model_or_path, tensors)
    elif needs_export(model_or_path):
        return import_exported_layers(export_module(model_or_path, nested(tensors), "static"), tensors)
    return import_layers(Source(model_or_path, nested(tensors), state.engine))


class ReferenceLayers:
    """The layers of one run, as the framework computes them.

    Args:
        program: with a source.
        inputs: of the run.
        state: of PyTorch.
    """

    def __init__(self, program: LayeredProgram, inputs: Sequence[np.ndarray], state: TorchState) -> None:
        assert program.source is not None
        self.program, self._inputs = program, list(inputs)
        with state.active():
            found = program.source.layers(program.layers, [torch.from_numpy(x) for x in self._inputs])
        self.integers: Arrays = [np.ascontiguousarray(tensor.contiguous().numpy()) for tensor in found]

    def unexplained(self, near: float = NEAR) -> LayerDifference | None:
        """Returns the first layer that the definition does not give from the layers before it.

        The definition is computed in double precision; if the framework's integer differs from it by one, the value
        must be within `near` steps of the tie between the two. None: all layers are explained.
        """
        program = self.program
        if unknown_ops(program.chained):
            raise NotImplementedError
        for index, (steps, layer) in enumerate(zip(self._steps(), program.layers, strict=True)):
            found = self.integers[index].astype(np.float64) - layer.q.zero_point
            apart = np.abs(found - steps)
            strays = apart > 0.5 + near
            if strays.any():  # perhaps saturated ones
                own = self._own(index)
                strays &= own != self.integers[index]
            if strays.any():
                who = "the reference's values are not those of the imported program"
                return LayerDifference(
                    layer.name, layer.op, strays.size, int(strays.sum()), float(apart[strays].max()), who
                )
        return None

    def are_ties(self, index: int, actual: np.ndarray) -> bool:
        """Whether all integers of a layer that differ from the reference's differ by one, and at ties."""
        different = actual != self.integers[index]
        if int(np.abs(actual.astype(np.int32) - self.integers[index].astype(np.int32)).max(initial=0)) > 1:
            return False
        (steps,) = self._steps([index])
        return bool((np.abs(steps - np.floor(steps) - 0.5)[different] < NEAR).all())

    def outputs(self) -> Arrays:
        """Returns the program's outputs, computed in double precision from the framework's integers."""
        return QdqInFloat(outputs_of_layers(self.program), double=True)(*self._inputs, *self.integers)

    def _steps(self, wanted: Sequence[int] | None = None) -> list[np.ndarray]:
        """Returns the layers' values before rounding, in steps from the zero point, in double precision."""
        wanted = range(len(self.program.layers)) if wanted is None else wanted
        formats = (False,) * len(self.program.layers)
        compute = QdqInFloat(self.program.unrounded(formats, wanted), double=True)
        scales = [np.float64(self.program.layers[i].q.scale) for i in wanted]
        return [real / scale for real, scale in zip(compute(*self._inputs, *self.integers), scales, strict=True)]

    def _own(self, index: int) -> np.ndarray:
        formats = (False,) * len(self.program.layers)
        compute = QdqInFloat(self.program.isolated(formats, [index]), double=True)
        return compute(*self._inputs, *self.integers)[0]


def first_difference(
    reference: ReferenceLayers, *, numerics: str, machine: Machine, inputs: Sequence[np.ndarray]
) -> LayerDifference | None:
    """Returns the first layer in which compiled code differs from the framework other than at ties, or None.

    It compiles the program again, with all layers as outputs.
    """
    from quantvm.verification.layer_runs import TvmLayerRun

    program = reference.program
    run = TvmLayerRun(
        program, numerics=numerics, state=TorchState(program.engine, machine.threads),
        channels_last=(False,) * len(program.layers), target=machine.target,
    )  # fmt: skip
    for index, (actual, layer) in enumerate(zip(run.layers_of(inputs), program.layers, strict=True)):
        expected = reference.integers[index]
        different = actual != expected
        if not different.any() or (numerics == "qdq" and reference.are_ties(index, actual)):
            continue
        steps = np.abs(actual.astype(np.int32) - expected.astype(np.int32))
        return LayerDifference(
            layer.name, layer.op, steps.size, int(different.sum()), float(steps.max()), "of the compiled code"
        )
    return None
