"""Normalizations written channel by channel: before and after, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower
from quantvm.lowering.channel_affine import merge_channel_affines
from quantvm.tvm_compat import build_executable, native_target, start_vm

from ..quantized_modules import conv2d, image

FACTORS = (0.458, 0.448, 1 / 3)
TERMS = (-0.03, 1e-7, 5.5)


class Normalized(nn.Module):
    """As torchvision's `transform_input`, with what `pick` makes of each channel."""

    def __init__(self, pick=lambda x, c: torch.unsqueeze(x[:, c], 1), order=(0, 1, 2), join=None):
        super().__init__()
        self.pick, self.order = pick, order
        self.join = join or (lambda parts: torch.cat(parts, 1))
        self.quantize, self.conv = torch.ao.nn.quantized.Quantize(0.03, 77, torch.quint8), conv2d(3, 8, padding=1)

    def forward(self, x):
        parts = [self.pick(x, c) * FACTORS[c] + TERMS[c] for c in self.order]
        return self.conv(self.quantize(self.join(parts))).dequantize()


def imported(module):
    found = from_torch(module.eval(), image(1, 3, 11, 21), engine="fbgemm")
    return relax.transform.CanonicalizeBindings()(found)


def operators(module):
    names = []
    for block in module["main"].body.blocks:
        names += [binding.value.op.name.removeprefix("relax.") for binding in block.bindings]
    return names


def test_before_and_after():
    before = imported(Normalized())
    front = operators(before)[: operators(before).index("quantize")]
    assert front == [*["strided_slice", "squeeze", "expand_dims", "multiply", "add"] * 3, "concat"]
    after = merge_channel_affines(before)
    assert operators(after)[:3] == ["multiply", "add", "quantize"]
    product, total = (binding.value for binding in after["main"].body.blocks[0].bindings[:2])
    for call, values in ((product, FACTORS), (total, TERMS)):
        np.testing.assert_array_equal(
            call.args[1].value.numpy(), np.array(values, np.float32).reshape(1, 3, 1, 1), strict=True
        )
    assert product.args[0].same_as(after["main"].params[0])
    relax.analysis.well_formed(after)


def test_channels_that_keep_their_dimension_are_merged_too():
    assert operators(merge_channel_affines(imported(Normalized(lambda x, c: x[:, c : c + 1]))))[0] == "multiply"


@pytest.mark.parametrize(
    "module",
    [
        Normalized(order=(2, 1, 0)),
        Normalized(order=(0, 1, 1)),
        Normalized(lambda x, c: x.relu()[:, c : c + 1] if c else x[:, :1]),
        Normalized(lambda x, c: x[:, c : c + 1, 1:]),
        Normalized(lambda x, c: torch.unsqueeze(x[:, c], 2), join=lambda parts: torch.cat(parts, 1)[:, :3]),
        Normalized(lambda x, c: x[:, c : c + 2], join=lambda parts: torch.cat(parts, 1)[:, :3]),
    ],
    ids=["reversed", "twice", "two sources", "cropped", "another axis", "two channels at once"],
)
def test_what_is_something_else_stays(module):
    before = imported(module)
    assert operators(merge_channel_affines(before)) == operators(before)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_kernel_that_takes_it_in_gives_pytorchs_bits(batch):
    module = Normalized()
    lowered, report = lower(imported(module), LoweringOptions(native_target()))
    assert report.float_ops == ()
    assert report.kernels["quantize_affine_nchw_to_nhwc_u8"] == 1
    x = image(batch, 3, 11, 21)
    x[0, :, 0, :3] = torch.tensor([1e30, -1e30, float("inf")])
    run = start_vm(build_executable(lowered, native_target()))["main"]
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    np.testing.assert_array_equal(run(tvm.runtime.tensor(x.numpy())).numpy(), expected)


def test_a_normalization_of_the_whole_image_is_taken_in_as_well():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factors", torch.tensor(FACTORS).reshape(1, 3, 1, 1))
            self.register_buffer("terms", torch.tensor(TERMS).reshape(1, 3, 1, 1))
            self.quantize, self.conv = torch.ao.nn.quantized.Quantize(0.03, 77, torch.quint8), conv2d(3, 8, padding=1)

        def forward(self, x):
            return self.conv(self.quantize(x * self.factors + self.terms)).dequantize()

    _, report = lower(imported(Whole()), LoweringOptions(native_target()))
    assert report.kernels["quantize_affine_nchw_to_nhwc_u8"] == 1
