from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.kernels.elementwise import normalization
from quantvm.numerics.normalization import batch_norm, batch_norm_affine, batch_norm_params, layer_norm
from quantvm.numerics.torch_engines import QuantParams

from .conftest import nhwc, quantized, run

Q = torch.ops.quantized
# (scale in, zero point in, scale out, zero point out); powers of two make ties
PARAMS = [(0.0213, 101, 0.0441, 77), (2.0**-5, 255, 2.0**-5, 101), (2.0**-3, 0, 0.011, 254), (3.1, 1, 2.0**-6, 128)]


def params(row) -> tuple[QuantParams, QuantParams]:
    si, zi, so, zo = row
    return QuantParams(float(np.float32(si)), zi), QuantParams(float(np.float32(so)), zo)


def statistics(rng, channels):
    weight, bias, mean = (rng.normal(0, 1, channels).astype(np.float32) for _ in range(3))
    return weight, bias, mean, rng.uniform(0, 2, channels).astype(np.float32)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("row", PARAMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (3, 5, 6, 35), (2, 8, 8, 64)])
def test_batch_norm_equals_torch(shape, row, relu, target):
    rng = np.random.default_rng(shape[-1])
    q_in, q_out = params(row)
    weight, bias, mean, var = statistics(rng, shape[-1])
    x = rng.integers(0, 256, shape).astype(np.uint8)
    op = Q.batch_norm2d_relu if relu else Q.batch_norm2d
    tensors = (torch.from_numpy(v) for v in (weight, bias, mean, var))
    expected = nhwc(op(quantized(x, q_in.scale, q_in.zero_point), *tensors, 1e-5, q_out.scale, q_out.zero_point))
    affine = batch_norm_affine(weight, bias, mean, var, 1e-5)
    alpha, beta = batch_norm_params(*affine, q_in, q_out)
    oracle = batch_norm(x, alpha, beta, q_in, q_out, relu=relu)
    np.testing.assert_array_equal(oracle, expected)
    kernel = normalization.batch_norm(shape[1:], alpha, beta, q_in, q_out, relu=relu)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=shape), expected)


@pytest.mark.parametrize("row", PARAMS)
@pytest.mark.parametrize(
    ("shape", "dims"), [((2, 7, 96), 1), ((1, 5, 33), 1), ((3, 3, 31), 1), ((2, 3, 5, 8), 3), ((2, 4, 1), 1)]
)
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_layer_norm_equals_torch(shape, dims, row, eps, target):
    rng = np.random.default_rng(sum(shape))
    q_in, q_out = params(row)
    normalized = shape[-dims:]
    gamma, beta = (rng.normal(m, 0.5, normalized).astype(np.float32) for m in (1, 0))
    x = rng.integers(0, 256, shape).astype(np.uint8)
    x[0, 0] = 17  # a row without variance
    tensor = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), q_in.scale, q_in.zero_point)
    made = Q.layer_norm(
        tensor, list(normalized), torch.from_numpy(gamma), torch.from_numpy(beta), eps, q_out.scale, q_out.zero_point
    )
    expected = made.int_repr().numpy()
    rows = x.reshape(-1, gamma.size)
    oracle = layer_norm(rows, gamma.reshape(-1), beta.reshape(-1), eps, q_in, q_out)
    np.testing.assert_array_equal(oracle.reshape(shape), expected)
    kernel = normalization.layer_norm(shape[1:], gamma, beta, eps, q_in, q_out)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=shape), expected)


def test_signed_integers():
    from quantvm.tvm_compat import native_target

    rng = np.random.default_rng(3)
    q_in, q_out = QuantParams(0.0625, -20, "int8"), QuantParams(0.03125, 7, "int8")
    x = rng.integers(-128, 128, (4, 40)).astype(np.int8)
    gamma, beta = (rng.normal(0, 1, 40).astype(np.float32) for _ in range(2))
    tensor = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), q_in.scale, q_in.zero_point)
    expected = Q.layer_norm(
        tensor, [40], torch.from_numpy(gamma), torch.from_numpy(beta), 1e-5, q_out.scale, q_out.zero_point
    )
    kernel = normalization.layer_norm((40,), gamma, beta, 1e-5, q_in, q_out)
    actual = run(kernel, native_target(), x, out_shape=x.shape, out_dtype="int8")
    np.testing.assert_array_equal(actual, expected.int_repr().numpy())
