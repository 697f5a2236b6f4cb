"""The quantized tensors of a program: which operator of the model computes each, and from which others.

A layer is an operator that quantizes its result. An importer gives `LayeredProgram` three things: the program in Relax
QDQ form, which returns all layers after its outputs; the layers' parameters; and a `LayerSource`, which computes them
in the framework. Everything else that the comparison needs follows from the Relax form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import tvm

from quantvm.errors import ConfigError
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.attributes import engine_of


@dataclass(frozen=True)
class Layer:
    """One quantized tensor.

    Attributes:
        name: module path in the model if known, else the operator; numbered if it occurs again.
        op: qualified name of the operator, such as quantized::conv2d.
        value: the tensor's name in the source.
        shape: logical shape.
        q: its parameters.
    """

    name: str
    op: str
    value: str
    shape: tuple[int, ...]
    q: QuantParams


@dataclass(frozen=True)
class LayerAlone:
    """One layer as a program of its own: real values of its inputs -> real values of its result.

    Attributes:
        program: an object of the source's own kind; it first quantizes the real values of each layer that it reads.
        reads: for each input, whether it is a layer or an input of the model, and its number.
    """

    program: Any
    reads: tuple[tuple[str, int], ...]


class LayerSource(Protocol):
    """A model in its own framework, which computes the integers of the layers.

    Attributes:
        side: its name in comparisons.
    """

    side: str

    def layers(
        self, layers: Sequence[Layer], inputs: Sequence[torch.Tensor], *, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Returns the integers of every layer, in the framework's own memory order.

        Args:
            layers: the layers to compute.
            inputs: the model's inputs.
            given: integers of every layer; each layer is computed from these. None: from the layers just computed.
        """
        ...

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the model's outputs."""
        ...

    def packed_for(self, pytorch: PyTorch, example_inputs: tuple[torch.Tensor, ...]) -> LayeredProgram:
        """Returns the program packed for the engine of `pytorch`, or raises ConfigError if the framework has none."""
        ...


class ForNoEngine:
    """A source whose programs are for no engine of PyTorch.

    Attributes:
        side: its name in comparisons.
        held: what a program is, with its article.
    """

    side: str
    held: str

    def packed_for(self, pytorch: PyTorch, example_inputs: tuple[torch.Tensor, ...]) -> LayeredProgram:
        """Raises ConfigError."""
        raise ConfigError(f"torch:{pytorch.engine}: {self.held} is for no engine of PyTorch; compare {self.side}")


@dataclass(frozen=True)
class LayeredProgram:
    """A quantized program and its layers, for batches of the example's size.

    Attributes:
        source: the model in its framework; None if the framework is not available.
        layers: in order of execution.
        chained: Relax QDQ; inputs -> (outputs, every layer's integers).
        n_outputs: how many of the results of `chained` are the program's own.
        example_inputs: the model's.
    """

    source: LayerSource | None
    layers: tuple[Layer, ...]
    chained: tvm.IRModule
    n_outputs: int
    example_inputs: tuple[torch.Tensor, ...]

    @property
    def engine(self) -> str:
        """The engine that the program was quantized for; of one that is for no engine of PyTorch, its kind."""
        return engine_of(self.chained)

    @cached_property
    def plain(self) -> tvm.IRModule:
        """Returns Relax QDQ; inputs -> outputs, without the layers."""
        from .layer_graphs import plain

        return plain(self)

    def isolated(self, channels_last: Sequence[bool], wanted: Sequence[int] | None = None) -> tvm.IRModule:
        """Returns Relax QDQ; (inputs, every layer's integers) -> the layers' integers, each from the given ones.

        Args:
            channels_last: for each layer, whether PyTorch holds it in channels-last order; some formulas depend on it.
            wanted: numbers of the layers to return; None: all.
        """
        from .layer_graphs import isolated

        return isolated(self, channels_last, wanted)

    def unrounded(self, channels_last: Sequence[bool], wanted: Sequence[int]) -> tvm.IRModule:
        """Returns what `isolated` does, but the wanted layers' float values from before they are quantized."""
        from .layer_graphs import isolated

        return isolated(self, channels_last, wanted, unrounded=True)


def capture(program: LayeredProgram, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Returns the integers of every layer as the framework computes them, under its current engine."""
    assert program.source is not None
    return program.source.layers(program.layers, inputs)


def is_channels_last(tensor: Any) -> bool:
    """Returns whether PyTorch holds a tensor in channels-last order."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
