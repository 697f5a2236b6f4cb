"""The lowering and the presets of `diff` ask numerics/dispatch.py the same question, and so follow one answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn
from tvm import relax

from quantvm.choices import ENGINES
from quantvm.frontend import import_layers
from quantvm.frontend.source import Source
from quantvm.kernels.conv.dot import PORTABLE
from quantvm.kernels.isa import PLAIN
from quantvm.layer_rules import Environment, Operator, preset_of
from quantvm.lowering.fuse_qdq import fuse_qdq
from quantvm.lowering.layer_operators import layer_operators
from quantvm.lowering.tensors import Tensor
from quantvm.lowering.torch.legalize import Legalization, lowerings
from quantvm.numerics import dispatch
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import shape_of
from tests.quantized_modules import Quantized, conv2d, functional, image, linear

CPUS = {
    "AVX2": Cpu(avx512=False, vnni=False),
    "AVX512": Cpu(avx512=True, vnni=False),
    "VNNI": Cpu(avx512=True, vnni=True),
    "AMX": Cpu(avx512=True, vnni=True, onednn_amx=True),
}
QUESTIONS = [
    name for name in vars(dispatch) if name.endswith(("_choice", "_is_qnnpacks", "_is_vectorised")) and name[0] != "_"
]


def _asymmetric() -> nn.Module:
    module = conv2d(16, 24, 3)
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.integers(-64, 64, (24, 16, 3, 3)).astype(np.int8))
    zeros = torch.from_numpy(rng.integers(-9, 9, 24))
    scales = torch.full((24,), 0.01, dtype=torch.float64)
    module.set_weight_bias(torch._make_per_channel_quantized_tensor(weight, scales, zeros, 0), None)
    return module


class Flat(nn.Module):
    """A linear layer on each image as one row, or on rows of an image."""

    def __init__(self, layer: nn.Module, rows: int) -> None:
        super().__init__()
        self.layer, self.rows = layer, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.flatten(x, 1) if self.rows == 1 else x.reshape(x.shape[0], self.rows, -1))


class Two(nn.Module):
    """An operator on the input, and on what is made of it."""

    def __init__(self, make: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.operator, self.make = functional(), make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.make(self.operator, x)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (lambda: conv2d(16, 24, 3, padding=1), (1, 16, 9, 10)),
    "dense, no padding": (lambda: conv2d(16, 24, 3, stride=2), (1, 16, 9, 10)),
    "odd channels": (lambda: conv2d(3, 8, 3, padding=1), (1, 3, 9, 10)),
    "asymmetric weights": (_asymmetric, (1, 16, 9, 10)),
    "pointwise": (lambda: conv2d(16, 64, 1), (1, 16, 9, 10)),
    "pointwise of few pixels": (lambda: conv2d(64, 16, 1), (1, 64, 2, 2)),
    "depthwise": (lambda: conv2d(16, 16, 3, groups=16, padding=1), (1, 16, 9, 10)),
    "depthwise of 12": (lambda: conv2d(12, 12, 5, groups=12, padding=2), (1, 12, 9, 10)),
    "two outputs a channel": (lambda: conv2d(16, 32, 3, groups=16, padding=1), (1, 16, 9, 10)),
    "groups of four": (lambda: conv2d(16, 48, 3, groups=4, padding=1), (1, 16, 9, 10)),
    "odd groups": (lambda: conv2d(16, 68, 3, groups=4, padding=1), (1, 16, 9, 10)),
    "a border around the input": (lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), conv2d(16, 24, 3)), (1, 16, 9, 10)),
    "linear": (lambda: Flat(linear(160, 24), 1), (1, 16, 2, 5)),
    "linear of few features": (lambda: Flat(linear(16, 9), 1), (1, 16, 1, 1)),
    "linear in halves": (lambda: Flat(linear(265, 9), 1), (1, 53, 1, 5)),
    "linear on rows": (lambda: Flat(linear(40, 24), 4), (1, 16, 2, 5)),
    "average": (lambda: nn.AvgPool2d(3, 2, 1), (1, 19, 9, 10)),
    "average, ceil mode": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 19, 9, 10)),
    "adaptive average, even": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (1, 19, 9, 10)),
    "adaptive average, uneven": (lambda: nn.AdaptiveAvgPool2d((4, 3)), (1, 19, 9, 10)),
    "mean": (lambda: Two(lambda f, x: x.mean([2, 3])), (1, 19, 9, 10)),
    "mean of one channel": (lambda: Two(lambda f, x: x.mean([2, 3])), (1, 1, 9, 10)),
    "mean, axes from the end": (lambda: Two(lambda f, x: x.mean([-2, -1])), (1, 19, 9, 10)),
    "maximum": (lambda: nn.MaxPool2d(3, 1, 1, 2), (1, 19, 9, 10)),
    "maximum, ceil mode": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 19, 9, 10)),
    "sum": (lambda: Two(lambda f, x: f.add(x, x)), (1, 19, 9, 10)),
    "sum, broadcast": (lambda: Two(lambda f, x: f.add(x, x[:, :, :1, :1])), (1, 19, 9, 10)),
    "concatenation": (lambda: Two(lambda f, x: f.cat([x, x], 1)), (1, 19, 9, 10)),
    "concatenation, axis from the end": (lambda: Two(lambda f, x: f.cat([x, x], -3)), (1, 19, 9, 10)),
    "hardswish": (lambda: nnq.Hardswish(0.45, 3), (1, 19, 9, 10)),
    "sigmoid": (lambda: Two(lambda f, x: torch.sigmoid(x)), (1, 19, 9, 10)),
    "leaky ReLU": (lambda: nnq.LeakyReLU(0.45, 3, 0.1), (1, 19, 9, 10)),
}


class Asked(Exception):  # noqa: N818 - it carries an answer and reports no error
    """What was asked, and what was answered."""

    def __init__(self, question: str, arguments: Any, answer: Any) -> None:
        super().__init__(question)
        self.question, self.arguments, self.answer = question, arguments, answer


def asked_by(compute: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Returns the first question to dispatch.py that `compute` comes to."""

    def spied(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any, **options: Any) -> Any:
            raise Asked(name, (arguments, options), original(*arguments, **options))

        return ask

    with monkeypatch.context() as patch:
        for name in QUESTIONS:
            patch.setattr(dispatch, name, spied(name, getattr(dispatch, name)))
        with pytest.raises(Asked) as asked:
            compute()
    return asked.value


def read(layer: nn.Module, shape: tuple[int, ...], *, channels_last: bool) -> tuple[Composite, Operator]:
    """Returns a layer as the lowering reads it, and as `diff` does."""
    program = import_layers(Source(Quantized(layer), image(*shape), "fbgemm"))
    isolated = program.isolated([channels_last] * len(program.layers))
    found = layer_operators(isolated)[-1]
    assert found is not None
    module = fuse_qdq(relax.transform.CanonicalizeBindings()(isolated))
    composites = [Composite(f) for f in module.functions.values() if f.attrs and "Composite" in f.attrs]
    (composite,) = (c for c in composites if c.name == found.operator.kind)
    return composite, found.operator


def tensors_of(composite: Composite, *, channels_last: bool) -> list[Tensor]:
    """Returns the inputs of a composite."""
    tensors = []
    for parameter in composite.params:
        shape = shape_of(parameter)
        if len(shape) != 4:
            tensors.append(Tensor(parameter, tuple(shape), "flat"))
            continue
        n, c, h, w = shape
        nhwc = relax.Var("x", relax.TensorType((n, h, w, c), "uint8"))
        tensors.append(Tensor(nhwc, (n, c, h, w), "NHWC", channels_last=channels_last))
    return tensors


@pytest.mark.parametrize("name", LAYERS)
def test_the_lowering_and_diff_ask_one_question(name, monkeypatch):
    make, shape = LAYERS[name]
    for channels_last in (False, True):
        composite, operator = read(make(), shape, channels_last=channels_last)
        tensors = tensors_of(composite, channels_last=channels_last and not _has_one_order(shape))
        lowering = lowerings()["torch", composite.name]
        for engine, cpu, threads in itertools.product(ENGINES, CPUS.values(), (1, 2)):
            pytorch = PyTorch(engine, threads, cpu)
            state = Legalization(pytorch, PORTABLE, PLAIN)
            state.builder = relax.BlockBuilder()
            lowered = asked_by(lambda: lowering(state, composite, tensors, name), monkeypatch)  # noqa: B023
            preset = asked_by(lambda: preset_of(operator, engine, Environment(pytorch)), monkeypatch)  # noqa: B023
            assert (preset.question, preset.arguments) == (lowered.question, lowered.arguments)
            assert preset.answer == lowered.answer
            if lowered.question == "contraction_choice":
                assert preset.answer is lowered.answer


def _has_one_order(shape: tuple[int, ...]) -> bool:
    return shape[1] == 1 or shape[2:] == (1, 1)
