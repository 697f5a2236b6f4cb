"""Eager operators on qint8 tensors: PyTorch gives them qint8 results, and so must the compiled code."""

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F

from quantvm.compiler import compile as compile_model
from quantvm.torch_compat import quantization_engine

Q = torch.ops.quantized
OUT = (0.0431, -3)
OPERATORS = {
    "sigmoid": torch.sigmoid,
    "quantized::sigmoid": lambda q: Q.sigmoid(q, 0.0041, -101),
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": lambda q: Q.hardswish(q, *OUT),
    "leaky_relu": lambda q: Q.leaky_relu(q, 0.1, False, *OUT),
    "elu": lambda q: Q.elu(q, *OUT),
    "relu6": F.relu6,
    "add": lambda q: Q.add(q, F.relu(q), *OUT),
    "add_relu": lambda q: Q.add_relu(q, F.relu(q), *OUT),
    "mul": lambda q: Q.mul(q, F.relu(q), *OUT),
    "cat": lambda q: Q.cat([q, q], 1, *OUT),
    "cat under the first's parameters": lambda q: Q.cat([q, q], 1, None, None),
    "avg_pool2d": lambda q: F.avg_pool2d(q, 2),
    "adaptive_avg_pool2d": lambda q: F.adaptive_avg_pool2d(q, 1),
    "max_pool2d": lambda q: F.max_pool2d(q, 3, 2, 1),
    "mean": lambda q: q.mean([2, 3]),
}


class _Quantized(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(torch.quantize_per_tensor(x, 0.0297, 3, torch.qint8)).dequantize()


def _assert_same_bits(function, shape, engine):
    x = torch.from_numpy(np.random.default_rng(7).normal(0, 2, shape).astype(np.float32))
    with quantization_engine(engine):
        module = _Quantized(function).eval()
        expected = module(x)
        artifact = compile_model(module, x, engine=engine, threads=1, cache=False)
    assert torch.equal(artifact(x), expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_on_int8(name):
    _assert_same_bits(OPERATORS[name], (2, 3, 9, 9), "fbgemm")


@pytest.mark.parametrize("name", ["sigmoid", "add", "avg_pool2d"])
def test_qnnpack_has_no_kernels_for_int8(name):
    """It leaves them to ATen's, which round otherwise than its own."""
    _assert_same_bits(OPERATORS[name], (2, 3, 9, 9), "qnnpack")


@pytest.mark.parametrize("per_channel", [False, True])
def test_linear_on_int8(per_channel):
    """OneDNN is the only engine with a contraction of qint8 activations."""
    rng = np.random.default_rng(3)
    weight = torch.from_numpy(rng.normal(0, 0.5, (16, 40)).astype(np.float32))
    scales = torch.full((16,), 0.0173, dtype=torch.float64)
    if per_channel:
        weight_q = torch.quantize_per_channel(weight, scales, torch.zeros(16, dtype=torch.int64), 0, torch.qint8)
    else:
        weight_q = torch.quantize_per_tensor(weight, 0.0173, 0, torch.qint8)
    with quantization_engine("onednn"):
        linear = nnq.Linear(40, 16)
        linear.set_weight_bias(weight_q, torch.from_numpy(rng.normal(0, 1, 16).astype(np.float32)))
    linear.scale, linear.zero_point = 0.0911, -7
    _assert_same_bits(linear, (5, 40), "onednn")
