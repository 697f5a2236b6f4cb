"""Fusing changes no bit: a kernel with operators behind it equals the same operators in kernels of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.depthwise_interleaved import can_saturate, channel_blocks
from quantvm.kernels.conv.dot import PORTABLE, select_dot
from quantvm.kernels.conv.epilogue import PostOps, ResidualAdd
from quantvm.kernels.elementwise import elementwise
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.schedule.schedule import Conv2dShape, Schedule
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.requantization import requantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.tvm_compat import native_target

from .conftest import run

INPUT_Q = QuantParams(0.0213, 121)
OUTPUT_Q = QuantParams(0.31, 117)
OTHER_Q = QuantParams(0.27, 131)
SUM_Q = QuantParams(0.42, 102)
FLOAT32 = np.float32


def _isas():
    isa = select_isa(native_target())
    return [PLAIN, isa] if isa != PLAIN else [PLAIN]


def _requantization(rule, channels, seed, relu=False, reduction=32):
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.002, 0.01, channels).astype(np.float32).astype(np.float64)
    output = replace(OUTPUT_Q, scale=float(FLOAT32(0.01 * np.sqrt(reduction))))
    return requantization(
        rule, "conv", input_q=INPUT_Q, weight_scales=scales, bias_f32=rng.standard_normal(channels).astype(np.float32),
        output_q=output, relu=relu, channels=channels,
    )  # fmt: skip


def _dense(shape, dot, isa, post=None, rule="fbgemm", schedule=None, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (shape.out_channels, *shape.kernel, shape.in_channels)).astype(np.int8)
    r = _requantization(rule, shape.out_channels, seed, reduction=shape.reduction)
    post = post(r.output) if post else PostOps()
    return r.output, conv2d.conv2d(
        shape, weight, INPUT_Q.zero_point, r, dot, isa=isa, post=post, schedule=schedule
    )  # fmt: skip


def _image(shape, channels, batch=2, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (batch, *shape, channels)).astype(np.uint8)


SHAPES = {
    "pointwise": Conv2dShape(4, 8, 24, 64),
    "pointwise, one and a half groups": Conv2dShape(3, 8, 24, 96),
    "3x3": Conv2dShape(6, 8, 16, 32, (3, 3), padding=(1, 1, 1, 1)),
    "one pixel": Conv2dShape(1, 1, 32, 64),
}


@pytest.mark.parametrize(("rule", "relu"), [("fbgemm", False), ("fbgemm", True), ("onednn", True)])
@pytest.mark.parametrize("name", SHAPES)
def test_residual_addition(name, relu, rule):
    shape, target = SHAPES[name], native_target()
    out_shape = (2, shape.out_height, shape.out_width, shape.out_channels)
    x = _image((shape.in_height, shape.in_width), shape.in_channels)
    other = _image(out_shape[1:3], out_shape[3], seed=2)
    q, plain = _dense(shape, PORTABLE, PLAIN, rule=rule)
    y = run(plain, target, x, out_shape=out_shape)
    add = elementwise.add(out_shape[1:], q, OTHER_Q, SUM_Q, relu=relu, pytorch=PyTorch("fbgemm"))
    expected = run(add, target, y, other, out_shape=out_shape)
    assert np.unique(expected).size > 30
    for dot, isa in {(PORTABLE, PLAIN), (select_dot(target), select_isa(target))}:
        _, fused = _dense(shape, dot, isa, lambda q: PostOps(residual=ResidualAdd(OTHER_Q, SUM_Q, relu)), rule=rule)
        assert fused.name.endswith("_add_relu" if relu else "_add")
        np.testing.assert_array_equal(run(fused, target, x, other, out_shape=out_shape), expected)


@pytest.mark.parametrize("channels", [16, 24, 64, 100])
@pytest.mark.parametrize("steps", ["limits", "table", "both"])
def test_limits_and_tables(channels, steps):
    shape, target = Conv2dShape(5, 7, 20, channels), native_target()
    out_shape = (2, 5, 7, channels)
    x = _image((5, 7), 20)
    entries = np.random.default_rng(3).permutation(256).astype(np.uint8)
    post = PostOps(
        limits=(90, 140) if steps != "table" else None,
        table=entries if steps != "limits" else None,
        table_output=OTHER_Q if steps != "limits" else None,
    )
    _, plain = _dense(shape, PORTABLE, PLAIN)
    expected = run(plain, target, x, out_shape=out_shape)
    expected = np.clip(expected, 90, 140) if post.limits else expected
    expected = entries[expected] if post.table is not None else expected
    isa = select_isa(target)
    choices = [(select_dot(target), isa)] if isa.byte_tables else []
    choices += [(PORTABLE, PLAIN)] if post.table is None else []
    for dot, chosen in choices:
        _, fused = _dense(shape, dot, chosen, lambda q: post)
        np.testing.assert_array_equal(run(fused, target, x, out_shape=out_shape), expected)


@pytest.mark.parametrize(
    ("channels", "stride", "saturate"),
    [(16, 2, True), (24, 1, False), (40, 2, True), (64, 1, False), (64, 1, True), (144, 1, True)],
)
def test_depthwise_with_limits_and_a_table(channels, stride, saturate):
    target = native_target()
    shape = Conv2dShape(
        9, 9, channels, channels, (3, 3), (stride, stride), (1, 1, 1, 1), groups=channels
    )  # fmt: skip
    rng = np.random.default_rng(channels)
    weight = rng.integers(-128, 128, (channels, 3, 3, 1)).astype(np.int8)
    r = _requantization("fbgemm", channels, 5, reduction=9)
    entries = rng.permutation(256).astype(np.uint8)
    x = _image((9, 9), channels)
    out_shape = (2, shape.out_height, shape.out_width, channels)

    def kernel(isa, post=None):
        return depthwise.depthwise_conv2d(
            shape, weight, np.zeros(channels, np.int64), INPUT_Q.zero_point, r, saturate_pairs=saturate, isa=isa,
            post=post or PostOps(),
        )  # fmt: skip

    plain = run(kernel(PLAIN), target, x, out_shape=out_shape)
    for isa in _isas():
        if isa != PLAIN:
            np.testing.assert_array_equal(run(kernel(isa), target, x, out_shape=out_shape), plain)
        limited = kernel(isa, PostOps(limits=(100, 150)))
        np.testing.assert_array_equal(run(limited, target, x, out_shape=out_shape), np.clip(plain, 100, 150))
        table = kernel(isa, PostOps(table=entries, table_output=OTHER_Q))
        np.testing.assert_array_equal(run(table, target, x, out_shape=out_shape), entries[plain])


def test_weights_that_cannot_saturate_take_the_shorter_way_to_the_same_bits():
    taps = np.array([[64, -64], [64, -64], [127, 1], [1, -128]], np.int8)
    assert not can_saturate(taps)
    assert can_saturate(np.array([[65], [64]], np.int8))
    assert can_saturate(np.array([[-128], [-1]], np.int8))
    assert not can_saturate(np.array([[-128], [127], [127]], np.int8))


@given(st.integers(16, 700))
def test_channel_blocks_cover_every_channel_within_the_row(channels):
    blocks = channel_blocks(channels)
    covered = {c for start, width in blocks for c in range(start, start + width)}
    assert covered == set(range(channels))
    assert all(start >= 0 and start + width <= channels for start, width in blocks)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_schedule_gives_the_same_bits(data):
    shape = Conv2dShape(
        data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9)), data.draw(st.sampled_from([4, 8, 12])),
        data.draw(st.sampled_from([16, 40, 64, 112])), (3, 3), (1, 1), (1, 1, 1, 1),
    )  # fmt: skip
    vectors = data.draw(st.integers(1, 4))
    schedule = Schedule(
        data.draw(st.integers(1, 6)), vectors, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    )
    target = native_target()
    out_shape = (2, shape.out_height, shape.out_width, shape.out_channels)
    x = _image((shape.in_height, shape.in_width), shape.in_channels)
    _, expected = _dense(shape, PORTABLE, PLAIN)
    _, kernel = _dense(shape, select_dot(target), select_isa(target), schedule=schedule)
    np.testing.assert_array_equal(
        run(kernel, target, x, out_shape=out_shape), run(expected, target, x, out_shape=out_shape)
    )
