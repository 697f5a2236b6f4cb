"""oneDNN's two ways to scale an accumulator: in the kernels, and which one PyTorch takes on a CPU with AMX."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from quantvm.compiler.build import compile_model
from quantvm.frontend import from_torch
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import PORTABLE, select_dot
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.numerics.onednn_amx import ConvGeometry, conv_separate_up_to, linear_separate_up_to
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.torch_engines import QuantParams
from quantvm.torch_compat import onednn_uses_amx, quiet
from quantvm.tvm_compat import native_target
from quantvm.verification.torch_state import TorchState
from tests import quantized_modules as modules
from tests.kernels.conftest import run

INPUT_Q = QuantParams(float(np.float32(0.0417)), 100)
ALWAYS = 2**31 - 1


def _geometry(size, in_channels, out_channels, kernel=1, stride=1, padding=0, groups=1):
    out = tuple((s + 2 * padding - kernel) // stride + 1 for s in (size, size))
    pair = (kernel, kernel), (stride, stride), (padding, padding), (1, 1)
    return ConvGeometry((size, size), out, in_channels, out_channels, *pair, groups)


@pytest.mark.parametrize(
    ("geometry", "one_thread", "two_threads"),
    [
        (_geometry(14, 64, 64, 3, padding=1), 0, 0),
        (_geometry(14, 64, 128), 0, 1),
        (_geometry(56, 512, 512), 0, 0),
        (_geometry(14, 58, 58), ALWAYS, ALWAYS),  # not whole steps of four channels
        (_geometry(1, 96, 32), 7, 7),  # 7 * 96 * 32 bytes are half of the cache
        (_geometry(1, 960, 240), 0, 1),
        (_geometry(2, 32, 32, 3, padding=1), 42, 42),
        (_geometry(14, 96, 96, 3, padding=1, groups=96), ALWAYS, ALWAYS),
        (_geometry(14, 64, 128, 3, padding=1, groups=64), 0, 0),
        (_geometry(8, 32, 48, 1, padding=1), ALWAYS, ALWAYS),  # windows of padding alone
        (_geometry(260, 64, 16, 3, padding=1), ALWAYS, ALWAYS),
        (_geometry(300, 8, 16, 3, padding=1), 0, 0),
    ],
)
def test_which_batches_of_a_convolution_have_separate_scales(geometry, one_thread, two_threads):
    """As measured on torch 2.13 on a Xeon with AMX."""
    assert [conv_separate_up_to(geometry, in_parallel=many) for many in (False, True)] == [one_thread, two_threads]


def _window(in_size, channels, kernel=(1, 1), padding=(0, 0, 0, 0), groups=1, stride=(1, 1), dilation=(1, 1)):
    return ConvGeometry.of_window(
        in_size, channels, kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


@pytest.mark.parametrize(
    ("geometry", "one_thread", "two_threads"),
    [
        # up to four pixels of up to 512 channels that fit into the cache
        (_window((1, 4), (96, 32)), 7, 7),
        (_window((1, 5), (96, 32)), 0, 1),
        (_window((2, 2), (512, 4)), 10, 10),
        (_window((2, 2), (516, 4)), 0, 1),
        (_window((2, 2), (96, 32), groups=2), 14, 14),
        (_window((2, 2), (512, 42)), 1, 1),
        (_window((2, 2), (512, 43)), 0, 1),
        (_window((2, 2), (32, 32), (3, 3), (1,) * 4), 42, 42),
        # columns of pixels that several threads share
        (_window((448, 9), (64, 32)), 0, 1),
        (_window((448, 9), (68, 32)), 0, 0),
        (_window((448, 9), (64, 33)), 0, 0),
        # windows of padding alone, at the top and at the right
        (_window((9, 9), (64, 8), (3, 3), (2, 1, 1, 1)), 0, 0),
        (_window((9, 9), (64, 8), (3, 3), (3, 1, 1, 1)), ALWAYS, ALWAYS),
        (_window((9, 9), (64, 8), (3, 3), (1, 1, 1, 2)), 0, 0),
        (_window((9, 9), (64, 8), (3, 3), (1, 1, 1, 3)), ALWAYS, ALWAYS),
        (_window((9, 9), (64, 8), (3, 1), (1, 0, 1, 1)), ALWAYS, ALWAYS),
        # one size that oneDNN leaves out
        (_window((150, 150), (128, 128), (3, 3), (1,) * 4), ALWAYS, ALWAYS),
        (_window((150, 150), (256, 256), (3, 3), (1,) * 4), ALWAYS, ALWAYS),
        (_window((150, 150), (64, 64), (3, 3), (1,) * 4), 0, 0),
        (_window((150, 150), (128, 256), (3, 3), (1,) * 4), 0, 0),
        (_window((150, 149), (128, 128), (3, 3), (1,) * 4), 0, 0),
        (_window((149, 149), (128, 128), (3, 3), (1,) * 4), 0, 0),
        (_window((150, 150), (256, 256), (3, 3), (1,) * 4, groups=2), ALWAYS, ALWAYS),
        # wide images, with padding at the sides
        (_window((9, 255), (34, 8), (3, 3), (1,) * 4), 0, 0),
        (_window((9, 256), (34, 8), (3, 3), (1,) * 4), ALWAYS, ALWAYS),
        (_window((9, 256), (34, 8), (3, 3), (0, 0, 0, 1)), 0, 0),
        (_window((9, 257), (34, 8), (3, 3), (0, 0, 0, 1)), ALWAYS, ALWAYS),
        # taps of a row in one run
        (_window((9, 300), (31, 8), (3, 3), (1,) * 4), 0, 0),
        (_window((9, 300), (32, 8), (3, 3), (1,) * 4), ALWAYS, ALWAYS),
        (_window((9, 300), (31, 8), (3, 2), (1, 1, 1, 0)), 0, 0),
        (_window((9, 300), (31, 8), (3, 3), (2,) * 4, dilation=(2, 2)), ALWAYS, ALWAYS),
        (_window((9, 300), (31, 8), (3, 3), (2, 1, 2, 1), dilation=(2, 1)), 0, 0),
        (_window((9, 301), (31, 8), (3, 1), (1, 0, 1, 0), stride=(1, 1)), ALWAYS, ALWAYS),
        # wide images without padding at the sides
        (_window((9, 302), (36, 8), (3, 3), (1, 0, 1, 0)), 0, 0),
        (_window((9, 302), (34, 8), (3, 3), (1, 0, 1, 0)), ALWAYS, ALWAYS),
        (_window((9, 302), (64, 8), (3, 3)), 0, 0),
        (_window((9, 302), (68, 8), (3, 3)), ALWAYS, ALWAYS),
        (_window((9, 302), (128, 8), (3, 3)), 0, 0),
        (_window((9, 302), (36, 8), (3, 3), stride=(1, 2)), 0, 0),
        (_window((3, 8193), (36, 8), (3, 3)), 0, 0),
        (_window((3, 8194), (36, 8), (3, 3)), ALWAYS, ALWAYS),
    ],
)
def test_both_sides_of_every_limit_of_a_convolution(geometry, one_thread, two_threads):
    """By oneDNN's sources, which the module's docstring names."""
    assert [conv_separate_up_to(geometry, in_parallel=many) for many in (False, True)] == [one_thread, two_threads]


def test_which_batches_of_a_linear_layer_have_separate_scales():
    shapes = [(512, 1000), (256, 256), (33, 17), (16, 1000), (17, 1000), (255, 257), (256, 1000), (256, 100), (33, 9)]
    assert [linear_separate_up_to(*shape) for shape in shapes] == [0, 1, 15, ALWAYS, 0, 0, 1, 2, 28]
    assert [linear_separate_up_to(33, outputs) for outputs in (1, 7, 8)] == [32, 32, 32]


def test_geometries_of_windows():
    geometry = _window((10, 12), (4, 4), (3, 2), (1, 2, 3, 4), stride=(2, 3), dilation=(1, 2))
    assert geometry.out_size == (6, 6)
    assert geometry.all_padding == (1, 2, 2, 4)  # a window does not reach the last row
    assert not geometry.is_depthwise
    assert _window((9, 9), (4, 4), groups=4).is_depthwise
    assert not _window((9, 9), (1, 1)).is_depthwise
    assert not _window((9, 9), (4, 8), groups=4).is_depthwise


def _requantization(channels, separate_up_to, divides=False):
    """Scales whose sums are often half-way between integers, where the two ways differ."""
    rng = np.random.default_rng(0)
    weight_scale = float(np.float32(0.3))
    output = QuantParams(float(np.float32(2 * np.float32(np.float32(INPUT_Q.scale) * np.float32(0.3)))), 128)
    return requantization(
        "onednn", "conv", input_q=INPUT_Q, weight_scales=rng.choice([weight_scale, 0.0173], channels), bias_f32=None,
        output_q=output, relu=False, channels=channels, separate_up_to=separate_up_to, divides=divides,
    )  # fmt: skip


def _expected(acc_i32, separate_up_to, divides=False):
    return requantize(acc_i32, _requantization(acc_i32.shape[-1], separate_up_to, divides))


@pytest.mark.parametrize(
    ("separate_up_to", "divides", "dot"),
    [(None, False, None), (0, False, None), (1, False, None), (1, False, PORTABLE.name), (None, True, None)],
)
def test_kernels_scale_by_the_size_of_the_batch(separate_up_to, divides, dot):
    """Dense, grouped, pointwise-as-matrix-product and both depthwise kernels, for one image and for two."""
    rng, target = np.random.default_rng(1), native_target()
    isa = PLAIN if dot else select_isa(target)
    for channels, groups, side in ((40, 1, 9), (40, 2, 9), (40, 1, 1), (64, 64, 9), (5, 5, 9)):
        kernel = 1 if side == 1 else 3
        shape = Conv2dShape(
            side, side, channels, channels, kernel=(kernel, kernel), padding=(kernel // 2,) * 4, groups=groups
        )
        weight = rng.integers(-3, 4, (channels, kernel, kernel, channels // groups)).astype(np.int8)
        r = _requantization(channels, separate_up_to, divides)
        if groups == channels:
            zeros = np.zeros(channels, np.int64)
            built = depthwise.depthwise_conv2d(
                shape, weight, zeros, INPUT_Q.zero_point, r, saturate_pairs=False, isa=isa
            )
        else:
            built = conv2d.conv2d(shape, weight, INPUT_Q.zero_point, r, select_dot(target, dot), isa=isa)
        for n in (1, 2):
            x_u8 = rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8)
            acc = _accumulate(x_u8, weight, groups)
            expected = _expected(acc, separate_up_to, divides)
            np.testing.assert_array_equal(run(built, target, x_u8, out_shape=expected.shape), expected)


def test_the_two_ways_differ():
    acc = np.arange(-9000, 9000, dtype=np.int64).reshape(-1, 1).repeat(40, 1)
    assert (_expected(acc, None) != _expected(acc, 0)).any()
    assert (_expected(acc, None) != _expected(acc, None, divides=True)).any()


def test_how_many_images_have_separate_scales():
    acc = np.arange(-9000, 9000, dtype=np.int64).reshape(3, -1, 1).repeat(40, 2)
    separate, combined = _expected(acc, None), _expected(acc, 0)
    assert (separate != combined).any()
    for up_to, expected in ((3, separate), (4, separate), (2, combined)):
        np.testing.assert_array_equal(_expected(acc, up_to), expected)


def _accumulate(x_u8, weight_ohwi, groups):
    x = torch.from_numpy(x_u8.astype(np.float64) - INPUT_Q.zero_point).permute(0, 3, 1, 2)
    w = torch.from_numpy(weight_ohwi.astype(np.float64)).permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(x, w, padding=weight_ohwi.shape[1] // 2, groups=groups)
    return np.ascontiguousarray(y.permute(0, 2, 3, 1).numpy()).astype(np.int64)


def test_the_importer_says_whether_this_pytorch_computes_with_amx(monkeypatch):
    module = modules.Quantized(modules.conv2d(8, 8, padding=1))
    with quiet():
        attributes = from_torch(module, modules.image(1, 8, 9, 9)).attrs
        assert int(attributes["quantvm.numerics.onednn_amx"]) == int(onednn_uses_amx())
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
        assert int(from_torch(module, modules.image(1, 8, 9, 9)).attrs["quantvm.numerics.onednn_amx"]) == 0


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a CPU with AMX")
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_code_equals_pytorch_with_amx_for_any_batch(threads):
    """A stack of the shapes on both sides of every limit; ties are many, so that a wrong choice shows."""
    with TorchState("onednn", threads).active(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convs = [
            modules.conv2d(64, 64, padding=1), modules.conv2d(64, 128, 1), modules.conv2d(64, 58, 1, stride=2),
            modules.conv2d(64, 64, padding=1, groups=4), modules.conv2d(64, 64, padding=1, groups=64),
            modules.conv2d(64, 32, 14), modules.conv2d(64, 32, 13), modules.conv2d(64, 16, 1, padding=1),
        ]  # fmt: skip
        for conv in convs:
            conv.scale = float(np.float32(conv.scale / 8))
        module = modules.Together([modules.Quantized(conv) for conv in convs])
        artifact = compile_model(module, modules.image(1, 64, 14, 14), engine="onednn", threads=threads)
        for n in (1, 2, 8):
            x = modules.image(n, 64, 14, 14, seed=n)
            for actual, expected in zip(artifact(x.numpy()), module(x), strict=True):
                np.testing.assert_array_equal(np.asarray(actual), expected.numpy())
