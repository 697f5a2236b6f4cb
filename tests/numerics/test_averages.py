"""Pools and means in NumPy against PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.numerics.averages import adaptive_scale, mean_of_pixels, qnnpack_factor, sides_factor
from quantvm.numerics.torch_engines import QuantParams, f32, integers_of, quantize_arr, quantize_val
from quantvm.torch_compat import quantization_engine

Q = QuantParams(float(f32(0.0417)), 101)


def integers(*shape: int) -> tuple[np.ndarray, torch.Tensor]:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return x, torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), Q.scale, Q.zero_point)


@pytest.mark.parametrize("channels", [1, 3, 9, 32, 45])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (17, 33)], ids=str)
def test_means_of_channels_last_images(channels, size):
    x, tensor = integers(2, channels, *size)
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    expected = tensor.dequantize().mean([2, 3])
    if channels > 1 and size != (1, 1):  # otherwise images are contiguous too, and summed in another order
        assert torch.equal(torch.from_numpy(mean_of_pixels(x, Q)), expected)
    np.testing.assert_array_equal(quantize_arr(expected.numpy(), Q), tensor.mean([2, 3]).int_repr())


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_averages_over_a_whole_image(engine, channels_last):
    x, tensor = integers(2, 11, 6, 7)
    tensor = tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor
    total, count = x.astype(np.int64).sum((2, 3)), 42
    centred = (total - count * Q.zero_point).astype(f32)
    if engine == "qnnpack":
        y = integers_of(centred * qnnpack_factor(Q.scale, count), Q)
    elif channels_last:
        step = QuantParams(float(adaptive_scale(count)), Q.zero_point)
        y = np.concatenate([quantize_arr(centred[:, :8], step), quantize_val(centred[:, 8:], step)], 1)
    else:
        y = integers_of(total.astype(f32) * sides_factor(6, 7), Q, zero_point="dropped")
    with quantization_engine(engine):
        expected = F.adaptive_avg_pool2d(tensor, 1).int_repr()[:, :, 0, 0]
    np.testing.assert_array_equal(y, expected)
