"""The profile of a compiled model. No duration is asserted but that there is one."""

from __future__ import annotations

import numpy as np
import torch

from quantvm.compiler.profile import profile
from quantvm.frontend import from_torch
from quantvm.runtime.target import Machine

from ..quantized_modules import Quantized, SmallNetwork, image

ONE_THREAD = Machine("native", 1)


def imported(module, x_f32):
    return from_torch(module, torch.from_numpy(x_f32[:1]), engine="fbgemm")


def test_every_call_has_a_time_its_shapes_and_the_multiply_adds_of_the_batch():
    x_f32 = image(2, 3, 17, 19).numpy()
    found = profile(imported(SmallNetwork(), x_f32), x_f32, ONE_THREAD, min_calls=5, min_seconds=0.0)
    assert found.n == 5
    assert min(found.total_ms, found.instrumented_ms, found.hook_ms) > 0
    assert all(call.p50_ms > 0 for call in found.calls)
    stem = next(call for call in found.calls if call.layer == "stem")
    assert (stem.op, stem.in_shapes, stem.out_shape) == ("conv2d", ((2, 17, 19, 3),), (2, 9, 10, 16))
    assert stem.macs == 2 * 9 * 10 * 16 * 27
    cat = next(call for call in found.calls if call.op == "concat")
    assert (cat.in_shapes, cat.out_shape) == (((2, 9, 10, 16), (2, 9, 10, 8)), (2, 9, 10, 24))


def test_it_ends_after_the_minimum_of_both_calls_and_seconds():
    x_f32 = np.zeros((1, 3, 9, 9), np.float32)
    found = profile(imported(SmallNetwork(), x_f32), x_f32, ONE_THREAD, min_calls=1, min_seconds=0.05)
    assert found.n > 1


def test_functions_that_take_sizes_beside_tensors():
    """Windows of images are a batch of their own, whose size TVM's own functions are told."""

    def windows(x):
        y = x.dequantize().reshape(-1, 4, 5, 6)
        return torch.softmax(torch.cat([y[:, 1:], y[:, :1]], 1).permute(0, 2, 1, 3), -1)

    x_f32 = image(2, 8, 5, 6).numpy()
    found = profile(imported(Quantized(windows), x_f32), x_f32, ONE_THREAD, min_calls=1, min_seconds=0.0)
    assert (4, 5, 4, 6) in [call.out_shape for call in found.calls]
