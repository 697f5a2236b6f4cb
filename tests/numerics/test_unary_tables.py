"""Tables of PReLU against PyTorch's; those of the other functions: test_operator_tables.py and test_numerics.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantvm.numerics.torch_engines import QuantParams, f32
from quantvm.numerics.unary_tables import prelu_tables


@pytest.mark.parametrize("slope_scale", [0.02, 0.0009], ids=["one fits", "one saturates"])
def test_prelu(slope_scale):
    q, out = QuantParams(float(f32(0.0417)), 100), QuantParams(float(f32(0.031)), 121)
    of_slopes = QuantParams(float(f32(slope_scale)), 30)
    slopes = np.array([0, 29, 30, 31, 80, 255], np.uint8)
    x = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :], (1, len(slopes), 256))

    def stored(values: np.ndarray, params: QuantParams) -> torch.Tensor:
        values = torch.from_numpy(np.ascontiguousarray(values))
        return torch._make_per_tensor_quantized_tensor(values, params.scale, params.zero_point)

    expected = torch.ops.quantized.prelu(stored(x, q), stored(slopes, of_slopes), out.scale, out.zero_point)
    np.testing.assert_array_equal(prelu_tables(q, slopes, of_slopes, out), expected.int_repr()[0])
