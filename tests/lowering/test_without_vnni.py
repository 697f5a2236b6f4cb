"""What PyTorch computes by other kernels on a CPU without AVX512-VNNI."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import tvm
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.frontend import from_torch
from quantvm.lowering.pipeline import LoweringOptions, lower
from quantvm.qdq.attributes import kernel_name
from quantvm.torch_compat import has_vnni, quantization_engine
from tests.quantized_modules import Quantized, outputs_of
from tests.random_network import LARGEST_WEIGHT

SCALE = float(np.float32(0.0213))


def near_ties(module: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Returns the layer with scales under which every other sum lies half-way between two integers, almost."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, shape).astype(np.int8))
    base = np.float32(rng.uniform(0.002, 0.01))
    scales = torch.from_numpy((base * 2.0 ** rng.integers(-1, 2, shape[0])).astype(np.float32).astype(np.float64))
    zeros = torch.zeros(shape[0], dtype=torch.int64)
    module.set_weight_bias(torch._make_per_channel_quantized_tensor(weight, scales, zeros, 0), None)
    steps = np.round(np.log2(LARGEST_WEIGHT * np.sqrt(np.prod(shape[1:]))))
    module.scale, module.zero_point = float(np.float32(np.float32(SCALE) * base) * 2.0**steps), 101
    return module


def conv2d(in_channels: int, out_channels: int, kernel: int, groups: int = 1, seed: int = 0) -> nn.Module:
    module = nnq.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return near_ties(module, (out_channels, in_channels // groups, kernel, kernel), seed)


def image(batch: int) -> torch.Tensor:
    integers = np.random.default_rng(batch).integers(0, 256, (batch, 16, 9, 10))
    return torch.from_numpy(((integers - 100) * np.float32(SCALE)).astype(np.float32))


class Layers(nn.Module):
    """Layers side by side."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


def layers() -> dict[str, nn.Module]:
    """Returns layers by what oneDNN does on a CPU with AVX2 alone: a kernel of its own, or plain C++ code."""
    linear = nnq.Linear(10, 33, bias_=False)
    return {
        "dense": conv2d(16, 40, 3),
        "pointwise": conv2d(16, 64, 1),
        "depthwise": conv2d(16, 16, 3, groups=16),
        "groups of four": conv2d(16, 48, 3, groups=4),
        "two outputs a channel, plain code": conv2d(16, 32, 3, groups=16),
        "odd groups, plain code": conv2d(16, 68, 3, groups=4),
        "linear": near_ties(linear, (33, 10), 3),
    }


@pytest.mark.parametrize("engine", ["x86", "onednn"])
def test_products_near_ties_have_torchs_bits(engine):
    with quantization_engine(engine):
        named = layers()
        module = Quantized(Layers(list(named.values())), SCALE, 100)
        artifact = compile_model(module, image(1), engine=engine, threads=1)
        for batch in (1, 3):
            expected = outputs_of(module(image(batch)))
            for name, actual, wanted in zip(named, artifact(image(batch)), expected, strict=True):
                assert torch.equal(actual, wanted), f"{name}, batch {batch}: {(actual != wanted).sum()} differ"


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize(("size", "stride", "padding", "dilation"), [(9, 1, (1, 2), 1), (8, 2, (2, 0), 2)])
def test_onednn_leaves_padding_out(size, stride, padding, dilation, border, groups):
    """The zero point 220 times two weights is beyond int16; but a border around the input is data."""
    rng = np.random.default_rng(size)
    with quantization_engine("onednn"):
        conv = nnq.Conv2d(16, 32, 3, stride, padding, dilation, groups, bias=False)
        weight = torch.from_numpy(rng.integers(-128, 128, (32, 16 // groups, 3, 3)).astype(np.int8))
        conv.set_weight_bias(torch._make_per_tensor_quantized_tensor(weight, 0.01, 0), None)
        conv.scale, conv.zero_point = 13.0, 128
        module = Quantized(nn.Sequential(nn.ConstantPad2d(border, 0.0), conv), 0.5, 220)
        x = torch.from_numpy((rng.integers(0, 256, (2, 16, size, size)) - 220) * np.float32(0.5)).float()
        artifact = compile_model(module, x, engine="onednn", threads=1)
        assert torch.equal(artifact(x), module(x))


@pytest.mark.parametrize("in_features", [253, 257, 258, 259, 301, 510, 765, 769])
def test_onednn_cuts_a_matrix_product_of_many_features(in_features):
    rng = np.random.default_rng(in_features)
    with quantization_engine("onednn"):
        linear = nnq.Linear(in_features, 5, bias_=False)
        weight = torch.from_numpy(rng.integers(-128, 128, (5, in_features)).astype(np.int8))
        linear.set_weight_bias(torch._make_per_tensor_quantized_tensor(weight, 0.01, 0), None)
        linear.scale, linear.zero_point = 26.0, 128
        module = Quantized(linear, 0.5, 0)
        x = torch.from_numpy(rng.integers(0, 256, (3, in_features)) * np.float32(0.5)).float()
        artifact = compile_model(module, x, engine="onednn", threads=1)
        assert torch.equal(artifact(x), module(x))


def test_module_says_whether_torch_has_vnni():
    with quantization_engine("x86"):
        module = from_torch(Quantized(conv2d(16, 8, 1)), image(1))
    assert int(module.attrs["quantvm.vnni"]) == int(has_vnni())


def test_average_pools_have_the_vectors_of_the_cpu_where_they_were_imported():
    """A target without AVX512, and one with it: what follows PyTorch is the same."""
    x = torch.zeros(1, 24, 4, 4).contiguous(memory_format=torch.channels_last)
    module = from_torch(Quantized(nn.AvgPool2d(2), SCALE, 100), x)
    assert int(module.attrs["quantvm.avx512"]) == int(torch.backends.cpu.get_cpu_capability() == "AVX512")
    kernels: dict[int, set[str]] = {0: set(), 1: set()}
    for avx512, cpu in itertools.product((0, 1), ("core-avx2", "skylake-avx512")):
        target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
        lowered, _ = lower(module.with_attr("quantvm.avx512", avx512), LoweringOptions(target, dot="portable"))
        (pool,) = (f for f in lowered.functions.values() if kernel_name(f) == "avg_pool2d_u8")
        kernels[avx512].add(pool.script())
    assert len(kernels[0]) == len(kernels[1]) == 1
    assert kernels[0] != kernels[1]


def test_weights_with_the_least_zero_point_have_torchs_bits():
    """Their negative is 128, which int8 does not hold."""
    rng = np.random.default_rng(0)

    def with_zero_points(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        weight = torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))
        zeros = torch.from_numpy(rng.choice([-128, -128, 3], shape[0]))
        scales = torch.full((shape[0],), 0.01, dtype=torch.float64)
        module.set_weight_bias(torch._make_per_channel_quantized_tensor(weight, scales, zeros, 0), None)
        module.scale, module.zero_point = 1.5, 7
        return module

    conv = with_zero_points(nnq.Conv2d(16, 9, 3, padding=1, bias=False), (9, 16, 3, 3))
    linear = with_zero_points(nnq.Linear(10, 9, bias_=False), (9, 10))
    with quantization_engine("fbgemm"):
        module = Quantized(Layers([conv, linear]), SCALE, 100)
        artifact = compile_model(module, image(1), engine="fbgemm", threads=1)
        for actual, expected in zip(artifact(image(3)), outputs_of(module(image(3))), strict=True):
            assert torch.equal(actual, expected)
