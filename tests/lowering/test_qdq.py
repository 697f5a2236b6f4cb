"""Numerics qdq, from an exported program to code: differences from float32 only at ties, islands in one kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from quantvm.frontend import from_exported_program
from quantvm.lowering import LoweringOptions, lower
from quantvm.lowering.hoist_quantize import hoist_quantize
from quantvm.tvm_compat import build_executable, native_target, start_vm

D = torch.ops.quantized_decomposed
IN, OUT, INNER = ((float(np.float32(scale)), zero) for scale, zero in ((0.0213, 121), (0.037, 97), (0.05, 140)))
"""Scale and zero point."""


class Island(nn.Module):
    """Quantized input -> a contraction with int8 weights -> float operators -> quantized output.

    In float64 the same is computed without the last quantization: that shows how far an element is from a tie.
    """

    def __init__(self, kind: str, tail, *, dtype=torch.uint8, seed: int = 0, groups: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = {"conv": (32, 16 // groups, 3, 3), "depthwise": (16, 1, 3, 3), "linear": (24, 16)}[kind]
        self.kind, self.tail, self.dtype = kind, tail, dtype
        self.groups = 16 if kind == "depthwise" else groups
        self.register_buffer("w", torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(shape[0], generator=generator) * 0.004 + 0.001)
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("bias", torch.randn(shape[0], generator=generator))

    @property
    def bounds(self) -> tuple[int, int]:
        return (0, 255) if self.dtype == torch.uint8 else (-128, 127)

    def _shift(self, zero: int) -> int:
        return zero if self.dtype == torch.uint8 else zero - 128

    def fake(self, x, params):
        scale, zero = params
        q = D.quantize_per_tensor(x, scale, self._shift(zero), *self.bounds, self.dtype)
        return D.dequantize_per_tensor(q, scale, self._shift(zero), *self.bounds, self.dtype)

    def before_output(self, x):
        w = D.dequantize_per_channel(self.w, self.scales, self.zeros, 0, -128, 127, torch.int8)
        w, bias = w.to(x.dtype), self.bias.to(x.dtype)
        y = F.linear(x, w, bias) if self.kind == "linear" else F.conv2d(x, w, bias, padding=1, groups=self.groups)
        return self.tail(self, x, y)

    def forward(self, x):
        return self.fake(self.before_output(self.fake(x, IN)), OUT)


def _residual(net, x, y):
    return torch.relu(y + torch.cat((x, x), 1))


def _quantized_between(net, x, y):
    between = net.fake(y.float(), INNER).to(y.dtype)
    return torch.relu(between + torch.cat((x, x), 1))


TAILS = {
    "nothing": lambda net, x, y: y,
    "relu": lambda net, x, y: torch.relu(y),
    "relu6": lambda net, x, y: F.relu6(y),
    "hardswish": lambda net, x, y: F.hardswish(y),
    "silu": lambda net, x, y: F.silu(y),
    "hardsigmoid": lambda net, x, y: F.hardsigmoid(y),
    "leaky_relu": lambda net, x, y: F.leaky_relu(y, 0.1),
    "scalar": lambda net, x, y: y * 0.7 + 1.3,
}
IMAGE_TAILS = {
    "residual": _residual,
    "quantized in between": _quantized_between,
    "max pool": lambda net, x, y: F.max_pool2d(torch.relu(y), 3, 2, 1),
    "average pool": lambda net, x, y: F.avg_pool2d(torch.relu(y), 2),
    "global average": lambda net, x, y: F.adaptive_avg_pool2d(torch.relu(y), (1, 1)),
    "flattened": lambda net, x, y: torch.flatten(F.max_pool2d(y, 2), 1),
    "concatenated": lambda net, x, y: torch.cat((torch.relu(y), x, F.max_pool2d(x, 3, 1, 1)), 1),
}
CASES = {
    **{f"{kind}, {name}": (kind, tail) for kind in ("conv", "depthwise", "linear") for name, tail in TAILS.items()},
    **{f"conv, {name}": ("conv", tail) for name, tail in IMAGE_TAILS.items()},
}


def _lowered(net: nn.Module, x: torch.Tensor):
    dims = {0: torch.export.Dim("n", min=1, max=64)}
    module = from_exported_program(torch.export.export(net.eval(), (x,), dynamic_shapes=(dims,)))
    lowered, report = lower(module, LoweringOptions(native_target()))
    vm = start_vm(build_executable(lowered, native_target()))

    def call(x: torch.Tensor) -> np.ndarray:
        y = vm["main"](tvm.runtime.tensor(np.ascontiguousarray(x.numpy())))
        return (y if hasattr(y, "numpy") else y[0]).numpy()

    return call, report


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.uint8) for name in CASES), *((f"conv, {name}", torch.int8) for name in IMAGE_TAILS)],
)
def test_differences_from_float32_lie_at_ties(name, dtype):
    kind, tail = CASES[name]
    net = Island(kind, tail, dtype=dtype).eval()
    shape = (16,) if kind == "linear" else (16, 6, 5)
    generator = torch.Generator().manual_seed(1)
    call, report = _lowered(net, torch.randn(2, *shape, generator=generator))
    assert report.int8_mac_share == 1
    assert not report.float_ops
    x = torch.randn(5, *shape, generator=generator)
    with torch.no_grad():
        expected, steps = net(x).numpy(), net.before_output(net.fake(x, IN).double()).numpy() / OUT[0]
    got = call(x)
    differ = got != expected
    assert np.all(np.abs(got - expected)[differ] < OUT[0] * 1.001)
    from_tie = np.abs(steps - np.floor(steps) - 0.5)
    assert np.all(from_tie[differ] < 1e-3)
    assert differ.mean() < 0.01
    assert len(np.unique(got)) > 3


def test_a_convolution_and_all_that_follows_is_one_kernel():
    net = Island("conv", _quantized_between)
    _, report = _lowered(net, torch.randn(2, 16, 6, 5))
    assert report.kernels["conv2d_u8i8acc32_vnni" if "conv2d_u8i8acc32_vnni" in report.kernels else next(
        k for k in report.kernels if k.startswith("conv2d")
    )] == 1  # fmt: skip
    assert not any("relu" in name or name.startswith("float_add") for name in report.kernels)


def test_a_result_with_two_readers_is_stored_once_as_floats():
    def tail(net, x, y):
        z = torch.relu(y)
        return z * F.hardsigmoid(F.adaptive_avg_pool2d(z, (1, 1)))

    net = Island("conv", tail).eval()
    call, report = _lowered(net, torch.randn(2, 16, 6, 5))
    x = torch.randn(3, 16, 6, 5)
    with torch.no_grad():
        np.testing.assert_allclose(call(x), net(x).numpy(), atol=OUT[0] * 1.01)
    assert sum(count for name, count in report.kernels.items() if name.startswith("conv2d")) == 1


def test_a_range_below_the_dtype_limits_the_integers():
    class Reduced(Island):
        bounds = (0, 127)

    net = Reduced("conv", TAILS["relu"]).eval()
    call, _ = _lowered(net, torch.randn(2, 16, 6, 5))
    x = torch.randn(3, 16, 6, 5) * 4
    with torch.no_grad():
        expected = net(x).numpy()
    assert expected.max() == np.float32((127 - OUT[1]) * np.float32(OUT[0]))
    np.testing.assert_allclose(call(x), expected, atol=OUT[0] * 1.01)
    assert call(x).max() == expected.max()


@I.ir_module
class PooledThenQuantized:
    @R.function
    def main(x: R.Tensor((2, 4, 6, 6), "float32"), y: R.Tensor((2, 4, 3, 3), "float32")):  # noqa: N805
        with R.dataflow():
            pooled = R.nn.max_pool2d(x, [2, 2], [2, 2])
            both = R.concat((pooled, y), axis=1)
            flat = R.reshape(both, R.shape([2, 72]))
            q = R.quantize(flat, R.const(0.1, "float32"), R.const(3, "uint8"), out_dtype="uint8")
            R.output(q)
        return q


@I.ir_module
class QuantizedThenPooled:
    @R.function
    def main(x: R.Tensor((2, 4, 6, 6), "float32"), y: R.Tensor((2, 4, 3, 3), "float32")):  # noqa: N805
        with R.dataflow():
            qx = R.quantize(x, R.const(0.1, "float32"), R.const(3, "uint8"), out_dtype="uint8")
            pooled = R.nn.max_pool2d(qx, [2, 2], [2, 2])
            qy = R.quantize(y, R.const(0.1, "float32"), R.const(3, "uint8"), out_dtype="uint8")
            both = R.concat((pooled, qy), axis=1)
            flat = R.reshape(both, R.shape([2, 72]))
            R.output(flat)
        return flat


def test_quantization_moves_in_front_of_pools_and_moves():
    after = hoist_quantize(PooledThenQuantized)
    tvm.ir.assert_structural_equal(after, relax.transform.CanonicalizeBindings()(QuantizedThenPooled))


@I.ir_module
class PooledForTwo:
    @R.function
    def main(x: R.Tensor((2, 4, 6, 6), "float32")):  # noqa: N805
        with R.dataflow():
            pooled = R.nn.max_pool2d(x, [2, 2], [2, 2])
            q = R.quantize(pooled, R.const(0.1, "float32"), R.const(3, "uint8"), out_dtype="uint8")
            out = (pooled, q)
            R.output(out)
        return out


def test_what_is_needed_in_float_stays_where_it_is():
    tvm.ir.assert_structural_equal(hoist_quantize(PooledForTwo), relax.transform.CanonicalizeBindings()(PooledForTwo))
