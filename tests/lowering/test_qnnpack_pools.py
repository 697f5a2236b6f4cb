"""Which pools QNNPACK computes, and what it reads beside the image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.numerics.dispatch import qnnpack_window
from quantvm.torch_compat import quantization_engine
from tests.quantized_modules import Quantized

POOLS = {
    "dilated maximum": lambda x: F.max_pool2d(x, 3, 1, 1, 2),
    "dilated maximum, ceil mode": lambda x: F.max_pool2d(x, 3, 2, 1, 2, True),
    **{
        f"average of {o}": lambda x, o=o: F.adaptive_avg_pool2d(x, o)
        for o in itertools.product((1, 2, 3, 6), (1, 4, 5, 8))
    },
}


class Pools(nn.Module):
    def forward(self, x):
        return tuple(pool(x) for pool in POOLS.values())


@pytest.mark.parametrize("channels", [1, 9])
def test_pools_have_qnnpacks_bits(channels):
    rng = np.random.default_rng(channels)
    x = torch.from_numpy((rng.integers(0, 256, (4, channels, 6, 8)) - 145) * np.float32(0.5)).float()
    with quantization_engine("qnnpack"):
        module = Quantized(Pools(), 0.5, 145)
        artifact = compile_model(module, x, engine="qnnpack", threads=1)
        for name, actual, expected in zip(POOLS, artifact(x), module(x), strict=True):
            assert torch.equal(actual, expected), name


def test_windows_of_adaptive_pools():
    assert qnnpack_window((6, 8), (3, 1)) == (2, 8)
    assert qnnpack_window((6, 8), (6, 4)) == (1, 2)
    assert qnnpack_window((6, 8), (6, 8)) is None, "nothing to pool"
    assert qnnpack_window((6, 8), (4, 8)) is None, "windows overlap"
