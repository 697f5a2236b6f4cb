"""Additions fused behind convolutions, and means over every axis, whose order of summation depends on the strides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from quantvm.compiler import compile as compile_model
from tests.quantized_modules import Body, Quantized, Together, conv2d, image

Q = torch.ops.quantized
IMAGE = (1, 16, 8, 12)  # 1536 elements: whole blocks of 64
BATCHES = (1, 3)
AXES = ((3,), (2,), (1,), (2, 3), (1, 3), (1, 2), (1, 2, 3), (-1,))


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def convolution(seed: int) -> torch.nn.Module:
    return conv2d(16, 16, 1, seed=seed, scale=0.13 * seed, zero_point=20 * seed)


ADDITIONS: dict[str, Callable[..., torch.Tensor]] = {
    "convolution first": lambda x, a, b: Q.add(a(x), last(x), 0.21, 51),
    "convolution second": lambda x, a, b: Q.add(last(x), a(x), 0.21, 51),
    "two convolutions": lambda x, a, b: Q.add_relu(a(x), b(x), 0.21, 51),
    "the other way round": lambda x, a, b: Q.add(b(x), a(x), 0.21, 51),
    "another order": lambda x, a, b: Q.hardswish(Q.add(a(x), x, 0.21, 51), 0.1, 5),
    "a gate": lambda x, a, b: Q.add(a(x), F.adaptive_avg_pool2d(b(x), 1), 0.21, 51),
}
CASES = {
    **{name: Body(function, convolution(2), convolution(3)) for name, function in ADDITIONS.items()},
    **{f"mean over {axes}": Body(lambda x, axes=axes: x.mean(axes)) for axes in AXES},
    **{
        f"mean over {axes} of channels-last": Body(lambda x, axes=axes: last(x).mean(axes, keepdim=True))
        for axes in AXES[1:6]
    },
}


@pytest.fixture(scope="module")
def equal():
    """Says of each case whether it has PyTorch's bits; all are compiled together."""
    threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "fbgemm"
    modules = [Quantized(body, zero_point=101) for body in CASES.values()]
    artifact = compile_model(Together(modules), image(*IMAGE), threads=1)
    found = dict.fromkeys(CASES, True)
    for batch in BATCHES:
        x = image(batch, *IMAGE[1:], seed=batch)
        for name, module, actual in zip(CASES, modules, artifact(x), strict=True):
            found[name] &= torch.equal(actual, module(x))
    yield found
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = engine


@pytest.mark.parametrize("name", CASES)
def test_bits_are_pytorchs(name, equal):
    assert equal[name]
