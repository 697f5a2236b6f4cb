"""Normalizations of quantized tensors against PyTorch's, with rows that end in scalar tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.numerics.normalization import batch_norm, batch_norm_affine, batch_norm_params, layer_norm
from quantvm.numerics.torch_engines import QuantParams, f32

Q = torch.ops.quantized
pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


def params(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(float(f32(scale)), zero_point)


IN = params(0.0417, 100)


def quantized(x: np.ndarray) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), IN.scale, IN.zero_point)


@pytest.mark.parametrize("n", [1, 31, 32, 40, 64, 65, 95])
def test_layer_norm(n):
    rng, out = np.random.default_rng(n), params(0.031, 121)
    x = rng.integers(0, 256, (300, n)).astype(np.uint8)
    x[0] = 7  # no variance
    gamma, beta = rng.normal(1, 0.5, n).astype(f32), rng.normal(0, 1, n).astype(f32)
    gamma[1::2] = 0  # the result is then the term, half-way between two integers
    beta[1::2] = ((rng.integers(-100, 100, n // 2) + 0.5) * out.scale).astype(f32)
    weights = torch.from_numpy(gamma), torch.from_numpy(beta)
    expected = Q.layer_norm(quantized(x), [n], *weights, 1e-5, out.scale, out.zero_point).int_repr()
    np.testing.assert_array_equal(layer_norm(x, gamma, beta, 1e-5, IN, out), expected)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("out", [params(0.05, 90), params(0.05, 0), params(0.013, 255)], ids=str)
def test_batch_norm(relu, out):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 5, 9, 7)).astype(np.uint8)
    weight, bias, mean = (rng.normal(0, 1, 5).astype(f32) for _ in range(3))
    variance = rng.uniform(0.01, 3, 5).astype(f32)
    compute = Q.batch_norm2d_relu if relu else Q.batch_norm2d
    vectors = [torch.from_numpy(v) for v in (weight, bias, mean, variance)]
    expected = compute(quantized(x), *vectors, 1e-3, out.scale, out.zero_point).int_repr()
    alpha, beta = batch_norm_params(*batch_norm_affine(weight, bias, mean, variance, 1e-3), IN, out)
    found = batch_norm(x.transpose(0, 2, 3, 1), alpha, beta, IN, out, relu=relu)
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), expected)
