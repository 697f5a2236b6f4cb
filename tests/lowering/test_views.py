"""Element-wise operators, means and pools of views: PyTorch's vector loops begin anew wherever its memory has a gap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.compiler import compile as compile_model
from quantvm.lowering import strides as torch_strides
from quantvm.verification.torch_state import TorchState
from tests.quantized_modules import Quantized, Together, image

Q = torch.ops.quantized
IMAGE = (1, 72, 3, 5)  # half of the channels are less than a block of 64 elements, all are more
BATCHES = (1, 3)
HALF = float(np.float32(0.0834))  # half the steps of the input: ties


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "chunk": lambda x: x.chunk(2, 1)[1],
    "channels-last chunk": lambda x: last(x).chunk(2, 1)[1],
    "rows of channels-last": lambda x: last(x)[:, :, 1:],
    "columns": lambda x: x[..., 1:],
    "every second channel": lambda x: last(x)[:, ::2],
    "transposition": lambda x: last(x).transpose(2, 3),
    "clone": lambda x: last(x).clone(),
    "own shape": lambda x: last(x).flatten(1, 1),
}
OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hardswish": lambda y: Q.hardswish(y, HALF, 5),
    "sigmoid": torch.sigmoid,
    "leaky_relu": lambda y: F.leaky_relu(y, 0.5),
    "elu": lambda y: Q.elu(y, HALF, 91, 1.3, 1.1, 0.7),
    "prelu": lambda y: Q.prelu(y, slopes(y.shape[1]), HALF, 91),
    "add": lambda y: Q.add(y, y, 2 * HALF, 51),
    "add of both formats": lambda y: Q.add(y, last(y), 2 * HALF, 51),
    "cat": lambda y: Q.cat([y, y], 1, HALF, 5),
    "cat along rows, then pool": lambda y: F.avg_pool2d(Q.cat([y, y], 2, HALF, 5), 2, 1),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 2, 1),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, 2),
    "mean": lambda y: y.mean([2, 3]),
    "mean over channels": lambda y: y.mean([1], keepdim=True),
    "mean over columns": lambda y: y.mean(-1),
    "bilinear": lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear"),
}
OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hardswish of pixels": lambda x: Q.hardswish(last(x).flatten(2), HALF, 5),
    "add of a gate": lambda x: Q.add(last(x), F.adaptive_avg_pool2d(x, 1), 2 * HALF, 51),
    "add to a gate": lambda x: Q.hardswish(Q.add(F.adaptive_avg_pool2d(x, 1), last(x), 2 * HALF, 51), HALF, 5),
    "add to a row": lambda x: Q.hardswish(Q.add(x[:, :, :1], last(x), 2 * HALF, 51), HALF, 5),
    "add of a channel": lambda x: Q.add(x, x[:, :1], 2 * HALF, 51),
    "mul of a channel": lambda x: Q.hardswish(Q.mul(last(x)[:, :1], x, HALF, 51), HALF, 5),
    "mul of a row": lambda x: Q.mul(x, x[:, :, :1], HALF, 51),
    "repeated channel": lambda x: Q.hardswish(x[:, :1].expand(-1, 70, -1, -1), HALF, 5),
    "indexed, then hardswish": lambda x: Q.hardswish(last(x)[:, torch.arange(7)], HALF, 5),
    "mean over the image": lambda x: last(x).mean([1, 2, 3]),
    "mean over a row and channels": lambda x: x.mean([1, 3], keepdim=True),
}
CASES = {f"{op} of {view}": (lambda x, v=v, o=o: o(v(x))) for (view, v), (op, o) in itertools.product(
    VIEWS.items(), OPERATORS.items()
)} | OTHERS  # fmt: skip


def slopes(channels: int) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor((torch.arange(channels) * 37 % 251).to(torch.uint8), 0.02, 30)


@pytest.fixture(scope="module")
def compared() -> Any:
    """Returns per case whether all bits of both batches are PyTorch's; all cases are compiled together."""
    modules = [Quantized(body, zero_point=101) for body in CASES.values()]
    with TorchState("fbgemm", 1).active():
        example = image(2, *IMAGE[1:])  # of one image, more views are dense in PyTorch's eyes
        artifact = compile_model(Together(modules), example, threads=1)
        found = dict.fromkeys(CASES, True)
        for batch in BATCHES:
            x = image(batch, *IMAGE[1:], seed=batch)
            for name, module, actual in zip(CASES, modules, artifact(x), strict=True):
                found[name] &= torch.equal(actual, module(x))
    return found


@pytest.mark.parametrize("name", CASES)
def test_views_have_torchs_bits(name, compared):
    assert compared[name]


def _random_view(rng: np.random.Generator) -> torch.Tensor:
    x = torch.empty([int(n) for n in rng.choice([1, 2, 3, 6], rng.integers(2, 6))])
    x = last(x) if x.dim() == 4 and rng.random() < 0.5 else x
    for _ in range(rng.integers(0, 4)):
        kind, dim = rng.integers(4), int(rng.integers(x.dim()))
        if kind == 0:
            x = x.permute(*(int(d) for d in rng.permutation(x.dim())))
        elif kind == 1 and x.shape[dim] > 1:
            x = x.narrow(dim, 1, x.shape[dim] - 1)
        elif kind == 2:
            x = x[(slice(None),) * dim + (slice(None, None, 2),)]
        elif x.shape[dim] == 1:
            x = x.expand(*(3 if d == dim else -1 for d in range(x.dim())))
    return x


def test_strides_follow_pytorch():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x = _random_view(rng)
        shape, strides = list(x.shape), x.stride()
        assert torch_strides.is_contiguous(shape, strides) == x.is_contiguous()
        if x.dim() == 4:
            is_last = x.is_contiguous(memory_format=torch.channels_last)
            assert torch_strides.is_channels_last(shape, strides) == is_last
        suggested = torch_strides.suggests_channels_last(shape, strides)
        memory = torch.quantize_per_tensor(torch.zeros(10_000), 1.0, 0, torch.quint8).as_strided(shape, strides)
        made = (torch_strides.channels_last if suggested else torch_strides.contiguous)(shape)
        assert memory.dequantize().stride() == made
        cut = int(rng.choice([d for d in range(1, x.numel() + 1) if x.numel() % d == 0]))
        try:
            expected = x.view(cut, x.numel() // cut).stride()
        except RuntimeError:
            expected = None
        assert torch_strides.viewed(shape, strides, [cut, x.numel() // cut]) == expected
