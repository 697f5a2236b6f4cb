"""Integers of exported programs by every way that they can come to be, compiled: the very integers of PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import nn

import quantvm
from quantvm.frontend import from_exported_program
from quantvm.verification.qdq_definition import ExactQdq
from tests.quantized_modules import image

D = torch.ops.quantized_decomposed
INT8, NARROW, UINT8 = (-128, 127, torch.int8), (-127, 127, torch.int8), (0, 255, torch.uint8)
pytestmark = pytest.mark.filterwarnings("ignore")


def quantized(x, scale=0.05, zero_point=3, limits=INT8):
    return D.quantize_per_tensor(x, scale, zero_point, *limits)


def dequantized(q, scale=0.05, zero_point=3, limits=INT8):
    return D.dequantize_per_tensor(q, scale, zero_point, *limits)


class Together(nn.Module):
    """Every case applied to the input, which has six elements along dimensions 1 to 3; one output each."""

    def __init__(self, cases) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.cases = cases
        self.register_buffer("scales", torch.rand(6, generator=generator) / 16 + 0.01)
        self.register_buffer("zeros", torch.tensor([-30, 0, 3, 17, -128, 127]))
        self.register_buffer("zeros_u8", torch.tensor([0, 128, 3, 200, 255, 127]))
        self.register_buffer("no_zeros", torch.zeros(6, dtype=torch.int64))
        self.register_buffer("stored", torch.randint(-128, 128, (2, 6, 6, 6), generator=generator, dtype=torch.int8))
        self.register_buffer("weight", torch.randint(-128, 128, (6, 4), generator=generator, dtype=torch.int8))

    def forward(self, x):
        return [case(self, x) for case in self.cases]

    def per_channel(self, x, axis=1, limits=INT8, zeros=None):
        zeros = (self.zeros_u8 if limits == UINT8 else self.zeros) if zeros is None else zeros
        return D.quantize_per_channel(x, self.scales, zeros, axis, *limits)

    def from_channels(self, q, axis=1, limits=INT8):
        return D.dequantize_per_channel(q, self.scales, self.zeros_u8 if limits == UINT8 else self.zeros, axis, *limits)


CASES = {
    # outputs
    "int8": lambda m, x: quantized(x),
    "uint8": lambda m, x: quantized(x, 0.05, 100, UINT8),
    "per channel": lambda m, x: m.per_channel(x),
    "per channel, uint8": lambda m, x: m.per_channel(x, 1, UINT8),
    "per channel, symmetric": lambda m, x: m.per_channel(x, 1, NARROW, m.no_zeros),
    "per row": lambda m, x: m.per_channel(x, 2),
    "per column": lambda m, x: m.per_channel(x, 3, NARROW),
    # dequantized along an axis, or under other parameters
    "per channel, dequantized": lambda m, x: m.from_channels(m.per_channel(x)),
    "per channel, then per tensor": lambda m, x: quantized(torch.relu(m.from_channels(m.per_channel(x)))),
    "uint8 per channel, then per tensor": lambda m, x: quantized(m.from_channels(m.per_channel(x, 1, UINT8), 1, UINT8)),
    "per tensor, dequantized per channel": lambda m, x: m.from_channels(quantized(x)),
    "per channel, dequantized per tensor": lambda m, x: dequantized(m.per_channel(x)),
    "dequantized under other parameters": lambda m, x: dequantized(quantized(x), 0.1, -4),
    "dequantized under another scale, in a region": lambda m, x: torch.relu(dequantized(quantized(x), 0.1)) + 1,
    # moved
    "permuted": lambda m, x: quantized(x).permute(0, 2, 3, 1),
    "reshaped and sliced": lambda m, x: dequantized(quantized(x).reshape(-1, 4, 9, 6)[:, 1:3]),
    "per channel, permuted": lambda m, x: m.from_channels(m.per_channel(x).permute(0, 1, 3, 2)),
    "per channel, flattened": lambda m, x: m.per_channel(x).flatten(1),
    "concatenated": lambda m, x: torch.cat([quantized(x), m.per_channel(x)], 1),
    "concatenated, dequantized": lambda m, x: dequantized(torch.cat([quantized(x), m.per_channel(x)], 1)),
    "concatenated with a constant": lambda m, x: dequantized(torch.cat([m.per_channel(x), m.stored], 1)),
    "floats concatenated": lambda m, x: torch.cat([m.from_channels(m.per_channel(x)), dequantized(quantized(x))], 1),
    "padded": lambda m, x: F.pad(quantized(x), (1, 1), value=7),
    "padded, dequantized": lambda m, x: dequantized(F.pad(quantized(x), (1, 1, 0, 2), value=7)),
    "per channel, padded": lambda m, x: dequantized(F.pad(m.per_channel(x), (1, 1), value=7)),
    "chosen": lambda m, x: torch.where(x > 0, quantized(x), m.per_channel(x)),
    "chosen from a constant": lambda m, x: dequantized(torch.where(x > 0, quantized(x), m.stored)),
    "split": lambda m, x: dequantized(m.per_channel(x).split(4, 1)[1]),
    "selected": lambda m, x: quantized(x)[:, 2],
    "stacked": lambda m, x: torch.stack([quantized(x), m.per_channel(x)]),
    "repeated": lambda m, x: quantized(x)[:, :1].expand(-1, 3, -1, -1),
    # limited, compared, computed with
    "limited": lambda m, x: quantized(x).clamp(-50, 50),
    "limited, dequantized": lambda m, x: dequantized(quantized(x).clamp(-20, 50)),
    "per channel, limited": lambda m, x: dequantized(m.per_channel(x).clamp(-20, 50)),
    "relu of integers": lambda m, x: torch.relu(quantized(x)),
    "max pool of integers": lambda m, x: F.max_pool2d(quantized(x), 2),
    "max pool of channels": lambda m, x: quantized(F.max_pool2d(m.from_channels(m.per_channel(x)), 2)),
    "maximum": lambda m, x: torch.maximum(quantized(x), m.per_channel(x)),
    "cut off": lambda m, x: dequantized(x.clamp(-100, 100).to(torch.int8).transpose(1, 2)),
    "as float": lambda m, x: quantized(x).to(torch.float32),
    "as int32": lambda m, x: quantized(x).to(torch.int32) + 128,
    "per channel, as int32, as float": lambda m, x: (m.per_channel(x).to(torch.int32) + 3).to(torch.float32),
    "greater": lambda m, x: quantized(x) > 3,
    "equal": lambda m, x: torch.eq(quantized(x), m.per_channel(x)),
    "product": lambda m, x: torch._int_mm(m.per_channel(x).reshape(-1, 6), m.weight),
    "product, scaled": lambda m, x: torch._int_mm(quantized(x).reshape(-1, 6), m.weight).to(torch.float32) * 0.05,
}


def test_integers_are_pytorchs():
    program = torch.export.export(Together([*CASES.values()]).eval(), (image(2, 6, 6, 6),))
    compiled = quantvm.compile(program, cache=False)
    x = 2 * image(2, 6, 6, 6, seed=5)
    for name, got, expected in zip(CASES, compiled(x), program.module()(x), strict=True):
        assert got.dtype == expected.dtype, name
        assert torch.equal(got, expected), name
        assert expected.dtype == torch.bool or len(expected.unique()) > 8, f"{name}: shows nothing"


class PerChannelConvolution(nn.Module):
    """A convolution between activations that are quantized per channel, as PT2E writes it."""

    def __init__(self, limits, zeros) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.limits = limits
        self.register_buffer("weight", torch.randint(-127, 128, (8, 3, 3, 3), generator=generator, dtype=torch.int8))
        self.register_buffer("weight_scales", torch.rand(8, generator=generator) / 256 + 0.001)
        self.register_buffer("weight_zeros", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("bias", torch.randn(8, generator=generator))
        self.register_buffer("scales", torch.tensor([0.0213, 0.031, 0.017]))
        self.register_buffer("zeros", torch.tensor(zeros))
        self.register_buffer("out_scales", torch.rand(8, generator=generator) / 16 + 0.03)
        self.register_buffer("out_zeros", torch.full((8,), zeros[0]))

    def forward(self, x):
        q = D.quantize_per_channel(x, self.scales, self.zeros, 1, *self.limits)
        x = D.dequantize_per_channel(q, self.scales, self.zeros, 1, *self.limits)
        w = D.dequantize_per_channel(self.weight, self.weight_scales, self.weight_zeros, 0, -127, 127, torch.int8)
        y = F.conv2d(x, w, self.bias)
        return y, D.quantize_per_channel(y, self.out_scales, self.out_zeros, 1, *self.limits)


@pytest.mark.parametrize(
    ("limits", "zeros"),
    [(INT8, [3, -20, 40]), (NARROW, [0, 0, 0]), (UINT8, [128, 100, 90])],
    ids=["int8", "int8 symmetric", "uint8"],
)
def test_convolution_of_channels(limits, zeros):
    program = torch.export.export(PerChannelConvolution(limits, zeros).eval(), (image(2, 3, 12, 12),))
    x = image(2, 3, 12, 12, seed=3)
    got, got_q = quantvm.compile(program, cache=False)(x)
    expected, expected_q = program.module()(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    differ = got_q != expected_q  # only where the float sum's error carries a value over a tie
    steps = expected.double() / program.module().out_scales.double().reshape(1, 8, 1, 1)
    assert torch.all((steps - steps.floor() - 0.5).abs()[differ] < 1e-3)
    assert differ.float().mean() < 0.01
    assert len(expected_q.unique()) > 50


@pytest.mark.parametrize("limits", [INT8, UINT8], ids=["int8", "uint8"])
def test_the_definition_quantizes_along_an_axis(limits):
    """What compiled code is compared with where it differs from PyTorch."""
    net = Together([lambda m, x: m.per_channel(x, 2, limits)]).eval()
    program = torch.export.export(net, (image(2, 6, 6, 6),))
    x = image(2, 6, 6, 6, seed=5)
    (found,) = ExactQdq(from_exported_program(program), divides=False)(x.numpy())
    assert torch.equal(torch.from_numpy(found), net(x)[0])
