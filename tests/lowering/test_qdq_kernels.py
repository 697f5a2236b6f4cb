"""Which kernels numerics=qdq picks for what is joined and convolved between a dequantize and a quantize."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from quantvm.lowering import LoweringOptions, lower
from quantvm.tvm_compat import native_target
from tests.lowering.test_patterns import Qdq, module_of

op = relax.op
IMAGE = (2, 16, 6, 6)


def functions(body: Any, *shapes: tuple[int, ...]) -> list[str]:
    """Returns the names of what is called, in order; kernels of ours by their name, TVM's by theirs."""
    _, report = lower(module_of(body, *shapes), LoweringOptions(native_target(), numerics="qdq"))
    return [call.kernel or call.function for call in report.calls]


def conv(q: Qdq, real: Any, outputs: int = 16, kernel: int = 3, groups: int = 1) -> Any:
    return q.emit(op.nn.conv2d(real, q.weight(outputs, 16 // groups, kernel, kernel), groups=groups))


@pytest.mark.parametrize(("axis", "joined"), [(1, True), (-3, True), (2, False), (-1, False)])
def test_images_are_joined_along_channels_by_a_kernel(axis, joined):
    def body(q: Qdq, a: Any, b: Any) -> Any:
        pools = [q.emit(op.nn.max_pool2d(q.dequantized(x), (2, 2))) for x in (a, b)]
        return q.quantized(conv(q, q.emit(op.concat(pools, axis)), kernel=1) if not joined else both(q, pools, axis))

    def both(q: Qdq, pools: list[Any], axis: int) -> Any:
        real = q.emit(op.concat(pools, axis))
        return q.emit(op.nn.conv2d(real, q.weight(16, 32, 1, 1)))

    found = functions(body, IMAGE, IMAGE)
    assert any(name.startswith("concat_") for name in found) == joined


@pytest.mark.parametrize(("groups", "depthwise"), [(16, True), (1, False), (4, False)])
def test_depthwise_convolutions_have_their_own_kernel(groups, depthwise):
    def body(q: Qdq, x: Any) -> Any:
        return q.quantized(conv(q, q.dequantized(x), groups=groups), 0.7, 3)

    assert any("depthwise" in name for name in functions(body, IMAGE)) == depthwise


def test_a_convolution_of_one_channel_is_not_depthwise():
    def body(q: Qdq, x: Any) -> Any:
        return q.quantized(q.emit(op.nn.conv2d(q.dequantized(x), q.weight(16, 1, 3, 3))), 0.7, 3)

    assert not any("depthwise" in name for name in functions(body, (2, 1, 6, 6)))
