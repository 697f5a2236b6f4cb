"""Where data is moved, where borders are filled in, and PyTorch's memory formats, on which its rounding depends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower
from quantvm.tvm_compat import native_target
from tests.quantized_modules import Body, Quantized, Together, conv2d, image, linear, outputs_of

Q = torch.ops.quantized
IMAGE = (1, 8, 5, 7)  # 280 elements: a tail of 24 after whole blocks of 64
BATCHES = (1, 3)


def pointwise(channels: int = 8, **options: Any) -> nn.Module:
    return conv2d(8, channels, 1, seed=3, **options)


pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


# ------------------------------------------------------------------ what is moved


def moves(function: Any, *layers: nn.Module, shape: tuple[int, ...] = IMAGE) -> list[str]:
    """Returns the names of the PrimFuncs that move data, in the order in which `main` calls them."""
    module = from_torch(Quantized(Body(function, *layers)), image(*shape))
    lowered, report = lower(module, LoweringOptions(native_target(), threads=1))
    assert report.float_ops == ()
    calls = [binding.value for block in lowered["main"].body.blocks for binding in block.bindings]
    names = [str(c.args[0].name_hint) for c in calls if getattr(getattr(c, "op", None), "name", "") == "relax.call_tir"]
    return [name for name in names if name.startswith(("transpose", "pad", "strided_slice", "concatenate"))]


def test_convolutions_follow_each_other_without_moving_data():
    assert moves(lambda x, a, b: b(a(x)), conv2d(8, 8, 3, padding=1), conv2d(8, 4, 3)) == ["transpose"]  # the output's


def test_channels_last_values_meet_without_moving_data():
    def body(x, a, b, c):
        y = a(x)
        z = Q.mul(Q.add(y, F.max_pool2d(y, 3, 1, 1), 0.5, 3), F.hardsigmoid(F.adaptive_avg_pool2d(y, 1)), 0.3, 9)
        return F.adaptive_avg_pool2d(c(Q.cat([b(z), y], 1, 0.4, 20)), 1).flatten(1)

    assert moves(body, pointwise(), pointwise(), conv2d(16, 8, 3, padding=1, groups=8)) == []


def test_reading_a_convolution_in_logical_order_moves_it_once():
    assert moves(lambda x, a: a(x).flatten(1), pointwise()) == ["transpose"]


def test_cat_of_channels_last_and_contiguous_is_in_logical_order():
    found = moves(lambda x, a: Q.cat([a(x), x], 1, 0.2, 4), pointwise())
    assert found == ["transpose", "transpose", "concatenate"]


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 1, 0, 2], [2, 0, 0, 0]])
def test_border_of_zeros_folds_into_a_convolution(pads):
    assert moves(lambda x, a: a(F.pad(x, pads)), conv2d(8, 8, 3)) == ["transpose"]


@pytest.mark.parametrize(
    ("body", "layer"),
    [
        (lambda x, a: a(F.pad(x, [1, 1, 1, 1], value=0.5)), conv2d(8, 8, 3)),
        (lambda x, a: a(F.max_pool2d(F.pad(x, [1, 1, 1, 1]), 2)), conv2d(8, 8, 1)),
    ],
)
def test_border_that_a_convolution_cannot_stand_for_is_filled_in(body, layer):
    assert moves(body, layer) == ["pad", "transpose"]


@pytest.mark.parametrize("pads", [[-1, 0, 0, 0], [0, 0, 1, -1], [2, -1, 0, 0]])
def test_what_is_cut_off_is_no_border(pads):
    assert moves(lambda x, a: a(F.pad(x, pads)), conv2d(8, 8, 3)) != ["transpose"]


def test_cat_along_an_axis_from_the_end():
    assert "concatenate" in moves(lambda x: Q.cat([x, x], -1, 0.2, 4))


def test_border_on_channels_is_moved_as_data():
    assert "pad" in moves(lambda x, a: F.pad(a(x), [0, 0, 0, 0, 1, 1]), pointwise())


# ------------------------------------------------------------------ bits


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


CASES = {
    "border of zeros": Body(lambda x, a: a(F.pad(x, [0, 1, 0, 2])), conv2d(8, 8, 3)),
    "border of another value": Body(lambda x, a: a(F.pad(x, [0, 1, 0, 2], value=0.5)), conv2d(8, 8, 3)),
    "border on a padded convolution": Body(lambda x, a: a(F.pad(x, [1, 0, 0, 1])), conv2d(8, 8, 3, padding=1)),
    "border on a depthwise convolution": Body(lambda x, a: a(F.pad(x, [1, 0, 0, 1])), conv2d(8, 8, 3, groups=8)),
    "border with a stride": Body(lambda x, a: a(F.pad(x, [0, 1, 0, 1])), conv2d(8, 8, 3, stride=2)),
    "border read twice": Body(lambda x, a: (lambda y: (a(y), y))(F.pad(x, [0, 1, 0, 1])), conv2d(8, 8, 3)),
    "border before a pool": Body(lambda x: F.max_pool2d(F.pad(x, [0, 1, 0, 1]), 3, 2)),
    "border that cuts": Body(lambda x, a: F.pad(a(x), [-1, 1, 1, -1]), pointwise()),
    "border on channels": Body(lambda x, a: Q.hardswish(F.pad(a(x), [1, 1, 1, 1, 0, 2]), 0.1, 4), pointwise()),
    "two borders": Body(lambda x, a: a(F.pad(F.pad(x, [1, 0]), [0, 0, 1, 0])), conv2d(8, 8, 2)),
    "flattened channels-last": Body(lambda x, a, b: b(a(x).flatten(1)), pointwise(), linear(280, 5)),
    "flattened, then hardswish": Body(lambda x, a: Q.hardswish(a(x).flatten(1), 0.1, 4), pointwise()),
    "linear on 3-d": Body(lambda x, a: a(x.flatten(2)), linear(35, 5)),
    "linear on 4-d": Body(lambda x, a, b: b(a(x)), pointwise(), linear(7, 20, relu=True)),
    "linear, then convolution": Body(lambda x, a, b: a(b(x)), pointwise(), linear(7, 20)),
    "cat of channels-last": Body(lambda x, a: Q.cat([a(x), a(x)], 1, 0.2, 4), pointwise(21)),
    "cat of both formats": Body(lambda x, a: Q.cat([a(x), x], 1, 0.2, 4), pointwise(21)),
    "cat of both formats, then pool": Body(lambda x, a: F.avg_pool2d(Q.cat([x, a(x)], 1, 0.2, 4), 3), pointwise()),
    "cat along rows": Body(lambda x, a: Q.cat([x, a(x)], 2, 0.2, 4), pointwise()),
    "cat along rows, then pool": Body(lambda x, a: F.avg_pool2d(Q.cat([a(x), a(x)], 2, 0.2, 4), 3), pointwise()),
    "cat along the batch": Body(lambda x, a: Q.cat([x, a(x)], 0, 0.2, 4), pointwise()),
    "cat of many": Body(lambda x: torch.cat([F.relu(x), *([x] * 18)], 1)),
    "cat of matrices": Body(lambda x: Q.cat([x.flatten(1), x.flatten(1)], 1, 0.2, 4)),
    "mul of both formats": Body(lambda x, a: Q.mul(a(x), x, 0.3, 50), pointwise()),
    "gate of a contiguous tensor": Body(lambda x, a: Q.mul(x, F.adaptive_avg_pool2d(a(x), 1), 0.3, 50), pointwise()),
    "gate first": Body(lambda x, a: F.avg_pool2d(Q.mul(F.adaptive_avg_pool2d(a(x), 1), x, 0.3, 50), 3), pointwise()),
    "add of matrices": Body(lambda x: Q.add(x.flatten(1), x.flatten(1), 0.3, 50)),
    "add of both formats": Body(lambda x, a: Q.add(x, a(x), 0.3, 50), pointwise()),
    "add of both formats, with ties": Body(lambda x: Q.add(x, last(x), 4 * x.q_scale(), 51)),
    "add fused behind a convolution": Body(lambda x, a: Q.add(a(x), torch.cat([x, x], 1), 0.3, 50), pointwise(16)),
    "add of a gate": Body(lambda x: Q.add(x, F.adaptive_avg_pool2d(x, 1), 1.0, 50)),
    "mul by a row": Body(lambda x: Q.mul(x, F.adaptive_avg_pool2d(x, (1, 7)), 1.0, 50)),
    "mul by a channel": Body(lambda x: Q.mul(x[:, :1], x, 1.0, 50)),
    "mean over channels": Body(lambda x: x.mean([1])),
    "contiguous, then hardswish": Body(lambda x, a: Q.hardswish(a(x).contiguous(), 0.1, 4), pointwise()),
    "contiguous, then pool": Body(lambda x, a: F.avg_pool2d(a(x).contiguous(), 3), pointwise(21)),
    "contiguous, then mean": Body(lambda x, a: a(x).contiguous().mean([2, 3]), pointwise(21)),
    "channels-last, then pools": Body(lambda x: (F.avg_pool2d(last(x), 2), F.adaptive_avg_pool2d(last(x), 3))),
    "channels-last, then cat": Body(lambda x: Q.cat([last(x), last(x)], 1, 2 * x.q_scale(), 5)),
    "channels-last, then convolution": Body(lambda x, a: a(last(x)), pointwise()),
    "channels-last of channels-last": Body(lambda x, a: F.avg_pool2d(last(last(a(x))), 3), pointwise()),
    "pools of a contiguous tensor": Body(lambda x: (F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 3))),
    "hardswish of a pool": Body(lambda x: Q.hardswish(F.max_pool2d(x, 3, 1, 1), 0.1, 4)),
    "pool of a slice": Body(lambda x, a: F.avg_pool2d(a(x)[:, :, 1:], 3), pointwise()),
    "pool of a chunk": Body(lambda x, a: F.adaptive_avg_pool2d(a(x).chunk(2, 1)[1], 2), pointwise()),
    "pool of a transposition": Body(lambda x, a: F.avg_pool2d(a(x).transpose(2, 3), 3), pointwise()),
    "mean of a slice": Body(lambda x, a: a(x)[:, :, 1:].mean([2, 3]), pointwise()),
    "convolution of a slice": Body(lambda x, a, b: b(a(x)[:, :, ::2, 1:]), pointwise(), pointwise()),
    "hardswish of a contiguous chunk": Body(lambda x: Q.hardswish(x.chunk(2, 1)[1], 0.1, 4)),
    "quantized again": Body(
        lambda x, a: Q.hardswish(torch.quantize_per_tensor(a(x).dequantize(), 0.25, 3, torch.quint8), 0.1, 4),
        pointwise(),
    ),
    "hardswish of a chunk": Body(lambda x, a: Q.hardswish(a(x).chunk(2, 1)[1], 0.1, 4), pointwise()),
    "hardswish of a slice": Body(lambda x, a: Q.hardswish(a(x)[..., 1:], 0.1, 4), pointwise()),
    "hardswish of a transposition": Body(lambda x, a: Q.hardswish(a(x).transpose(2, 3), 0.1, 4), pointwise()),
    "hardswish of flattened pixels": Body(lambda x, a: Q.hardswish(a(x).flatten(2), 0.1, 4), pointwise()),
    "add of chunks": Body(lambda x, a: Q.add(*a(x).chunk(2, 1), 0.1, 4), pointwise()),
}  # fmt: skip


def test_formulas_follow_the_memory_format_of_the_example():
    def body(x):
        twice = Q.cat([x, x], 1, 2 * x.q_scale(), 5)
        return F.avg_pool2d(x, 3), F.adaptive_avg_pool2d(x, 2), x.mean([2, 3]), twice, Q.hardswish(x, 0.1, 5)

    module = Quantized(Body(body), zero_point=101)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        example = image(1, 21, 5, 7).contiguous(memory_format=memory_format)
        artifact = compile_model(module, example, threads=1)
        for batch in BATCHES:
            x = image(batch, 21, 5, 7, seed=batch).contiguous(memory_format=memory_format)
            for actual, expected in zip(artifact(x), module(x), strict=True):
                assert torch.equal(actual, expected)


@pytest.fixture(scope="module")
def compiled():
    """Maps a case to its outputs for each batch; all are compiled together."""
    torch.backends.quantized.engine = "fbgemm"
    modules = [Quantized(body) for body in CASES.values()]
    artifact = compile_model(Together(modules), image(*IMAGE), threads=1)
    results = {batch: list(artifact(image(batch, *IMAGE[1:], seed=batch))) for batch in BATCHES}
    counts = [len(outputs_of(module(image(*IMAGE)))) for module in modules]
    return {
        name: {batch: [results[batch].pop(0) for _ in range(count)] for batch in BATCHES}
        for name, count in zip(CASES, counts, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_bits_in_every_memory_format(name, compiled):
    module = Quantized(CASES[name])
    for batch in BATCHES:
        expected = outputs_of(module(image(batch, *IMAGE[1:], seed=batch)))
        for actual, wanted in zip(compiled[name][batch], expected, strict=True):
            assert actual.shape == wanted.shape
            assert torch.equal(actual, wanted), f"batch {batch}: {(actual != wanted).sum()} of {wanted.numel()} differ"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_mean_of_one_channel_is_that_of_a_contiguous_tensor(memory_format):
    rng = np.random.default_rng(0)
    q = rng.integers(20, 200, (64, 1, 10, 4))
    q[:, 0, 0, 0] += (20 - q.sum((1, 2, 3))) % 40  # every sum is half-way between two means
    scale, zero_point = float(np.float32(0.10846531)), 17
    x = torch.from_numpy((q - zero_point) * scale).float().contiguous(memory_format=memory_format)
    network = Quantized(lambda y: y.mean([2, 3], keepdim=True), scale, zero_point)
    artifact = compile_model(network, x, engine="fbgemm", threads=1, cache=False)
    assert torch.equal(artifact(x), network(x))
