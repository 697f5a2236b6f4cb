"""The factors by which PyTorch's pools and means scale integer sums, and the order in which PyTorch sums floats."""

from __future__ import annotations

import numpy as np

from quantvm.numerics.torch_engines import F32, QuantParams, Values, dequantize_val, f32, reciprocal_f32


def count_factor(count: Values) -> np.float32:
    """Returns fl(1 / count), the factor of avg_pool2d."""
    return np.divide(f32(1), f32(count), dtype=f32)


def adaptive_scale(count: int) -> np.float32:
    """Returns fl(1 / fl(1 / count)), the scale with which channels-last adaptive_avg_pool2d quantizes a sum."""
    return reciprocal_f32(count_factor(count))


def sides_factor(height: int, width: int) -> np.float32:
    """Returns fl(fl(1 / height) / width), the factor of adaptive_avg_pool2d of contiguous images."""
    return np.divide(count_factor(height), f32(width), dtype=f32)


def qnnpack_factor(scale: float, count: int) -> np.float32:
    """Returns fl(s / fl(s * count)), the factor of QNNPACK's pools; `count` includes the padding."""
    return np.divide(f32(scale), np.multiply(f32(scale), f32(count), dtype=f32), dtype=f32)


def mean_of_pixels(x_q: Values, q: QuantParams) -> F32:
    """Returns (n, C): the mean over the pixels of (n, C, H, W) channels-last integers, in float32.

    Computes: D_VAL, a float32 sum in the order of `at::sum`, fl(. / (H*W)). For the last C % 32 channels (C % 4 if
        C < 8) the sum is made of four such sums, each over every fourth pixel.
    """
    real = dequantize_val(x_q, q).reshape(*np.shape(x_q)[:2], -1)
    channels, pixels = real.shape[1:]
    cut = channels // 32 * 32 if channels >= 8 else channels // 4 * 4
    total = np.empty(real.shape[:2], f32)
    total[:, :cut] = cascade_sum(real[:, :cut])
    tail = real[:, cut:]
    parts = [cascade_sum(tail[:, :, i : pixels // 4 * 4 : 4]) for i in range(4)]
    for i in range(pixels // 4 * 4, pixels):
        parts[0] = np.add(parts[0], tail[:, :, i], dtype=f32)
    for part in parts[1:]:
        parts[0] = np.add(parts[0], part, dtype=f32)
    total[:, cut:] = parts[0]
    return np.divide(total, f32(pixels), dtype=f32)


def cascade_sum(values: F32) -> F32:
    """Returns the sum over the last axis in the order of `at::sum` (aten/src/ATen/native/cpu/SumKernel.cpp)."""
    count = values.shape[-1]
    power = max(4, int(np.ceil(np.log2(max(count, 2)))) // 4)
    step = 1 << power
    levels = [np.zeros(values.shape[:-1], f32) for _ in range(4)]
    done = 0
    while done + step <= count:
        for i in range(done, done + step):
            levels[0] = np.add(levels[0], values[..., i], dtype=f32)
        done += step
        for j in range(1, 4):
            levels[j] = np.add(levels[j], levels[j - 1], dtype=f32)
            levels[j - 1] = np.zeros_like(levels[0])
            if done & ((step - 1) << (j * power)):
                break
    for i in range(done, count):
        levels[0] = np.add(levels[0], values[..., i], dtype=f32)
    for level in levels[1:]:
        levels[0] = np.add(levels[0], level, dtype=f32)
    return levels[0]
