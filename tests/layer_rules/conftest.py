"""One module of every quantized operator, its layers, and what PyTorch computes for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn

from quantvm.frontend import LayeredProgram, import_layers
from quantvm.frontend.source import Source
from quantvm.layer_rules import Environment, preset_of
from quantvm.layer_rules.family import family_of
from quantvm.lowering.layer_operators import LayerOperator, layer_operators
from quantvm.torch_compat import quantization_engine
from quantvm.verification.layer_runs import TorchLayerRun
from quantvm.verification.torch_state import TorchState
from tests.quantized_modules import conv2d, functional, image, linear

ENVIRONMENT = Environment(TorchState("fbgemm", 1))


class EveryOperator(nn.Module):
    """Full-range activations, odd sizes, and channel counts that leave PyTorch's vector loops a tail."""

    def __init__(self, engine: str) -> None:
        super().__init__()
        self.engine = engine
        self.quantize = nnq.Quantize(float(np.float32(0.0417)), 100, torch.quint8)
        self.wide = conv2d(3, 19, 3, padding=1, seed=1, scale=1.3, zero_point=120)
        self.per_tensor = conv2d(19, 24, 1, relu=True, scheme="per tensor", seed=2, scale=1.7, zero_point=3)
        self.depthwise = conv2d(24, 24, 3, padding=1, groups=24, seed=3, scale=2.9, zero_point=211)
        self.grouped = conv2d(24, 16, 3, stride=2, padding=1, dilation=2, groups=4, seed=4, scale=3.1, bias=False)
        self.adder, self.relu_adder = functional(1.1, 61), functional(1.3, 7)
        self.multiplier, self.joiner = functional(2.1, 111), functional(1.9, 90)
        self.contiguous_joiner = functional(1.4, 33)
        self.hardswish = nnq.Hardswish(float(np.float32(0.45)), 3)
        self.leaky = nnq.LeakyReLU(float(np.float32(0.9)), 70, 0.1)
        self.head = linear(24, 10, seed=6, scale=8.1, zero_point=128)
        self.long = linear(266, 10, seed=8, scale=30.1, zero_point=128)
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.quantize(x)
        first = self.wide(x)
        y = self.per_tensor(first)
        z = self.depthwise(y)
        results = [self.grouped(z), self.adder.add(y, z), self.relu_adder.add_relu(y, z), self.multiplier.mul(y, z)]
        results += [self.joiner.cat([first, y, z], 1), self.contiguous_joiner.cat([x, x], 1)]
        results += [self.hardswish(first), self.leaky(first), torch.relu(z)]
        if self.engine != "qnnpack":  # whose clamp scrambles the elements of channels-last tensors
            results.append(torch.clamp(z, -20.0, 100.0))
        results += [torch.sigmoid(z), F.hardsigmoid(z), F.max_pool2d(first, 3, 2, 1), F.max_pool2d(first, 3, 1, 1, 2)]
        results += [F.avg_pool2d(first, 3, 2, 1), F.adaptive_avg_pool2d(first, (3, 2)), F.avg_pool2d(x, 2, 2)]
        results += [F.adaptive_avg_pool2d(x, (2, 3)), first.mean([2, 3]), x.mean([2, 3], keepdim=True)]
        results.append(torch.quantize_per_tensor(F.softsign(z.dequantize()), 0.0079, 127, torch.quint8))
        results.append(self.long(torch.flatten(F.max_pool2d(first, (2, 6)), 1)))
        results.append(self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)))
        return tuple(result.dequantize() for result in results)


@dataclass(frozen=True)
class Subject:
    """A program's layers: what they compute, from which integers, and PyTorch's results."""

    program: LayeredProgram
    x_f32: np.ndarray
    formats: tuple[bool, ...]
    operators: list[LayerOperator | None]
    layers: list[np.ndarray]

    def by_preset(self, index: int, name: str) -> np.ndarray:
        """Returns a layer's integers under a preset."""
        return self.evaluated(index, preset_of(self.operator(index), name, ENVIRONMENT).facts)

    def operator(self, index: int):
        """Returns a layer's operator."""
        return self.operators[index].operator

    def inputs(self, index: int) -> list[np.ndarray]:
        """Returns a layer's inputs."""
        return self.operators[index].inputs_of([self.x_f32, *self.layers])

    def evaluated(self, index: int, facts, select=None, cache=None) -> np.ndarray:
        """Returns a layer's integers under a choice of facts."""
        operator = self.operator(index)
        family = family_of(operator.kind)
        assert family.is_valid(operator, facts), (operator.kind, facts)
        cache = {} if cache is None else cache
        return family.evaluate(operator, self.inputs(index), facts, ENVIRONMENT, cache, select)

    def index(self, name: str) -> int:
        """Returns the number of a layer."""
        return [layer.name for layer in self.program.layers].index(name)


@pytest.fixture(scope="session")
def subject_of():
    """Returns the layers of `EveryOperator` under an engine."""
    made: dict[str, Subject] = {}

    def make(engine: str) -> Subject:
        if engine not in made:
            x = image(1, 3, 15, 13)
            with quantization_engine(engine):
                program = import_layers(Source(EveryOperator(engine), x, engine))
            run = TorchLayerRun(program, TorchState(engine, 1))
            formats = run.channels_last(x.numpy())
            operators = layer_operators(program.isolated(formats))
            made[engine] = Subject(program, x.numpy(), formats, operators, run.chained(x.numpy()))
        return made[engine]

    return make
