"""The batch in another dimension than the first, merged with others, split off again; tensors of one dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.errors import CompileError
from tests.quantized_modules import Body, Quantized, Together, conv2d, functional, linear

Q = torch.ops.quantized
BATCHES = (1, 2, 3, 5)
SHAPE = (2, 9, 16)
"""Of (n, T, C): batches of 1, 2, 3, 5 have 144, 288, 432, 720 elements, with scalar tails of 16, 32, 48 and 16."""


pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


def given(n: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(n, *shape[1:], generator=torch.Generator().manual_seed(n))


def _attention(x: torch.Tensor, qkv: nn.Module, out: nn.Module) -> torch.Tensor:
    q, k, v = (t.dequantize() for t in qkv(x).reshape(x.shape[0], 9, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0))
    y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], 9, 16)
    return out(torch.quantize_per_tensor(y, 0.02, 120, torch.quint8))


def _merged(x: torch.Tensor, first: nn.Module, second: nn.Module) -> tuple[torch.Tensor, ...]:
    n, t, c = x.shape
    y = first(x.reshape(-1, c)).view(n, t, -1)
    z = second(y.view(n * t, 16)).unflatten(0, (n, t)).flatten(0, 1)
    return z.reshape(n, -1), z.view(-1, t, 6), z.view(n // 1, t, 6).reshape(-1), y.permute(1, 2, 0).flatten(1)


def _arithmetic(x: torch.Tensor, first: nn.Module, second: nn.Module, add: nn.Module, mul: nn.Module) -> Any:
    a, b = first(x.transpose(0, 1)), second(x.transpose(0, 1))
    c = add.add(a, b)
    d = mul.mul(a, c)
    return torch.cat([c, d], -1), torch.cat([c, d], 1), torch.cat([c, d], 0), F.relu(d), F.hardtanh(d, -0.5, 0.5)


def _image_rows(x: torch.Tensor, conv: nn.Module, rows: nn.Module) -> tuple[torch.Tensor, ...]:
    y = conv(x.unsqueeze(1)).flatten(2).permute(2, 0, 1)
    return rows(y), Q.hardswish(y, 0.03, 12)


def cases() -> list[nn.Module]:
    return [
        Body(lambda x, f, g: g(f(x.transpose(0, 1))).transpose(0, 1), linear(16, 8, relu=True), linear(8, 4)),
        Body(_attention, linear(16, 48), linear(16, 16)),
        Body(_merged, linear(16, 16), linear(16, 6)),
        Body(lambda x, f: torch.sigmoid(f(x).permute(1, 2, 0)), linear(16, 24)),
        Body(_arithmetic, linear(16, 8), linear(16, 8, seed=1), functional(), functional()),
        Body(_image_rows, conv2d(1, 8, padding=1), linear(8, 12)),
        Body(lambda x, f: (f(x)[0], f(x)[-1], f(x)[:, 0, 0], f(x).reshape(-1)), linear(16, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_batch_elsewhere_has_pytorchs_bits(threads: int) -> None:
    torch.set_num_threads(threads)
    model = Quantized(Together(cases()))
    compiled = compile_model(model, given(2), threads=threads, cache=False)
    assert compiled.report.int8_mac_share > 0.9
    for n in BATCHES:
        for index, (got, want) in enumerate(zip(compiled(given(n)), model(given(n)), strict=True)):
            assert torch.equal(got, want), f"output {index} at batch {n}"


@pytest.mark.parametrize("numerics", ["qdq", pytest.param("integer", marks=pytest.mark.nightly)])
def test_dynamic_batch_equals_static_ones(numerics: str) -> None:
    model = Quantized(Together(cases()))
    dynamic = compile_model(model, given(2), numerics=numerics, cache=False)
    static = compile_model(model, given(3), numerics=numerics, batch="static", cache=False)
    for got, want in zip(dynamic(given(3)), static(given(3)), strict=True):
        assert torch.equal(got, want)


def test_images_with_two_dynamic_sizes_name_the_way_out() -> None:
    model = Quantized(Body(lambda x, f: f(x.permute(3, 1, 0, 2)), conv2d(2, 8, padding=1)))
    x = torch.randn(4, 2, 5, 6)
    with pytest.raises(CompileError, match=r"conv2d at .*: use batch='static'"):
        compile_model(model, x, cache=False)
    compiled = compile_model(model, x, batch="static", cache=False)
    assert torch.equal(compiled(x), model(x))
