"""What `diff` reads from a layer: its geometry, its options, and the memory formats of its inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.frontend import import_layers
from quantvm.frontend.source import Source
from quantvm.layer_rules import Operator, Window
from quantvm.lowering.layer_operators import layer_operators
from tests.layer_rules.test_choices import Flat, Two
from tests.quantized_modules import Quantized, conv2d, image, linear

IMAGE = (1, 8, 9, 10)


def operator_of(module: nn.Module, shape: tuple[int, ...], *, channels_last: bool = False) -> Operator:
    program = import_layers(Source(Quantized(module), image(*shape), "fbgemm"))
    found = layer_operators(program.isolated([channels_last] * len(program.layers)))[-1]
    assert found is not None
    return found.operator


@pytest.mark.parametrize(("rows", "shape"), [(1, (1, 16, 2, 5)), (4, (1, 16, 2, 5)), (2, (1, 4, 2, 5))])
def test_rows_of_linear_layers(rows, shape):
    features = shape[1] * 10 // rows
    found = operator_of(Flat(linear(features, 24), rows), shape)
    assert (found.kind, found.rows, found.weight.shape) == ("linear", rows, (24, features))


@pytest.mark.parametrize(
    ("module", "window"),
    [
        (
            lambda: conv2d(8, 12, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=4),
            Window((3, 3), (2, 1), (1, 2, 1, 2), (1, 2), 4),
        ),
        (lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2)), Window((3, 2), (2, 1), (1, 0, 1, 0), (1, 2))),
        (lambda: nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True), Window((3, 2), (2, 2), (1,) * 4, ceil_mode=True)),
        (
            lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            Window((3, 3), (1, 1), (1,) * 4, count_include_pad=False),
        ),
    ],
)
def test_windows(module, window):
    found = operator_of(module(), IMAGE)
    assert found.window == window
    if found.kind == "conv2d":
        assert found.in_size == IMAGE[2:]


def test_means_adaptive_pools_and_concatenations():
    pool = operator_of(nn.AdaptiveAvgPool2d((3, 5)), IMAGE)
    assert (pool.in_size, pool.out_size) == ((9, 10), (3, 5))
    mean = operator_of(Two(lambda f, x: x.mean([-2, 3], keepdim=True)), IMAGE)
    assert (mean.axes, mean.keepdims) == ((-2, 3), True)
    assert not operator_of(Two(lambda f, x: x.mean([2, 3])), IMAGE).keepdims
    assert operator_of(Two(lambda f, x: f.cat([x, x], -2)), IMAGE).axis == -2


def add(module_input, *, channels_last: bool, shape: tuple[int, ...] = IMAGE) -> tuple:
    found = operator_of(Two(module_input), shape, channels_last=channels_last)
    return found.channels_last, found.contiguous, found.formats, found.one_shape


def test_formats_of_sums():
    assert add(lambda f, x: f.add(x, x), channels_last=False) == (False, True, (False, False), True)
    assert add(lambda f, x: f.add(x, x), channels_last=True) == (True, False, (True, True), True)
    # single channels and single pixels lie in both orders
    assert add(lambda f, x: f.add(x, x), channels_last=False, shape=(1, 1, 9, 10))[:2] == (True, True)
    assert add(lambda f, x: f.add(x, x), channels_last=True, shape=(1, 8, 1, 1))[:2] == (True, True)
    assert add(lambda f, x: f.add(x, x), channels_last=False, shape=(1, 8, 1, 10))[:2] == (False, True)


def test_sums_of_two_shapes():
    def gated(f, x):
        return f.add(x, torch.nn.functional.adaptive_avg_pool2d(x, 1))

    assert add(gated, channels_last=False)[3] is False


@pytest.mark.parametrize(
    "move",
    [
        lambda x: torch.nn.functional.pad(x, [1, 2, 3, 4]),
        lambda x: x[:, 1:, ::2, 2:9:3],
        lambda x: x.permute(0, 2, 1, 3),
        lambda x: x.reshape(1, 4, 18, 10),
        lambda x: torch.flatten(x[:, :, :, :1], 2),
    ],
)
def test_inputs_follow_from_those_of_the_program(move):
    """What lies between the layers, in NumPy as in PyTorch."""
    program = import_layers(Source(Quantized(Two(lambda f, x: f.add(move(x), move(x)))), image(*IMAGE), "fbgemm"))
    isolated = program.isolated([False] * len(program.layers))
    layer = layer_operators(isolated)[-1]
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 256, [int(d) for d in p.ty.shape]).astype(np.uint8) for p in isolated["main"].params]
    q = layer.operator.inputs[0]
    matching = [
        x for x in given if x.shape == IMAGE
        and np.array_equal(_moved(move, x, q), layer.inputs_of(given)[0])
    ]  # fmt: skip
    assert len(matching) == 1
    assert len(layer.inputs_of(given)) == 2


def _moved(move, x: np.ndarray, q) -> np.ndarray:
    stored = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), q.scale, q.zero_point)
    return move(stored).int_repr().numpy()


def test_a_normalization_of_channels_is_part_of_the_quantization():
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantize = torch.ao.nn.quantized.Quantize(0.03, 77, torch.quint8)

        def forward(self, x):
            factors, terms = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 3.0])
            return self.quantize(x * factors.reshape(1, 2, 1, 1) + terms.reshape(1, 2, 1, 1)).dequantize()

    program = import_layers(Source(Normalized().eval(), image(1, 2, 3, 3), "fbgemm"))
    found = layer_operators(program.isolated([False]))[0].operator
    assert found.kind == "quantize_affine"
    assert [vector.tolist() for vector in found.affine] == [[0.5, 2.0], [-1.0, 3.0]]
