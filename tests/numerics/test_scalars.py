"""Sums and products of a quantized tensor and a number against PyTorch's, parameters and integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.numerics.torch_engines import QuantParams, add_scalar, mul_scalar
from quantvm.numerics.unary_tables import add_scalar_table

Q = torch.ops.quantized
SCALE = 0.0417  # no float32 number: PyTorch derives scales from the double
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.3, -1.7, 1e-3, 5.0, -4.1, 11.0, -11.0)
DTYPES = (("uint8", torch.quint8), ("int8", torch.qint8))


def every_integer(q: QuantParams, dtype: torch.dtype) -> torch.Tensor:
    x = torch.arange(256) + q.quant_min
    stored = torch._make_per_tensor_quantized_tensor(
        x.to(torch.uint8 if dtype == torch.quint8 else torch.int8), SCALE, q.zero_point
    )
    assert stored.q_scale() == SCALE
    return stored


def params(zero_point: int, dtype: str) -> QuantParams:
    return QuantParams.of_torch(SCALE, zero_point - (128 if dtype == "int8" else 0), dtype)


@pytest.mark.parametrize(("dtype", "torch_dtype"), DTYPES)
@pytest.mark.parametrize("number", NUMBERS)
def test_products(number, dtype, torch_dtype):
    for zero_point in (0, 100, 255):
        q = params(zero_point, dtype)
        expected = Q.mul_scalar(every_integer(q, torch_dtype), number)
        found = mul_scalar(q, number)
        assert (found.torch_scale, found.zero_point) == (expected.q_scale(), expected.q_zero_point())


@pytest.mark.parametrize(("dtype", "torch_dtype"), DTYPES)
@pytest.mark.parametrize("number", NUMBERS)
def test_sums(number, dtype, torch_dtype):
    for zero_point in (0, 1, 100, 254, 255):
        q = params(zero_point, dtype)
        expected = Q.add_scalar(every_integer(q, torch_dtype), number)
        found, steps = add_scalar(q, number)
        assert (found.torch_scale, found.zero_point) == (expected.q_scale(), expected.q_zero_point())
        if found.torch_scale != q.torch_scale:  # otherwise PyTorch keeps the integers
            np.testing.assert_array_equal(add_scalar_table(q, steps, found), expected.int_repr())
