"""What each pattern takes and what it leaves: QDQ written by hand, before and after the passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from quantvm.lowering import LoweringOptions, lower
from quantvm.lowering.fuse_qdq import fuse_qdq
from quantvm.lowering.patterns import all_patterns
from quantvm.lowering.torch.legalize import legalized_names
from quantvm.tvm_compat import native_target

op = relax.op
IMAGE = (2, 8, 6, 6)


class Qdq:
    """Writes one Relax function in QDQ form, whose inputs are uint8."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.emit = self.builder.emit

    def dequantized(self, x: Any, scale: Any = 0.05, zero_point: Any = 100, axis: int = -1) -> Any:
        dtype = str(x.ty.dtype)
        return self.emit(op.dequantize(x, relax.const(scale, "float32"), relax.const(zero_point, dtype), axis))

    def quantized(self, y: Any, scale: float = 0.05, zero_point: int = 100, dtype: str = "uint8") -> Any:
        return self.emit(op.quantize(y, relax.const(scale, "float32"), relax.const(zero_point, dtype), out_dtype=dtype))

    def weight(self, *shape: int) -> Any:
        values = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        return self.dequantized(relax.const(values), np.full(shape[0], 0.01, "float32"), np.zeros(shape[0], "int8"), 0)


def module_of(body: Callable[..., Any], *shapes: tuple[int, ...]) -> tvm.IRModule:
    """Returns a module whose function applies `body(qdq, *inputs)` to uint8 inputs."""
    qdq = Qdq()
    params = [relax.Var(f"x{i}", relax.TensorType(shape, "uint8")) for i, shape in enumerate(shapes)]
    with qdq.builder.function("main", params):
        with qdq.builder.dataflow():
            result = qdq.builder.emit_output(body(qdq, *params))
        qdq.builder.emit_func_output(result)
    return qdq.builder.get()


def composites(module: tvm.IRModule) -> list[str]:
    """Returns the names of the composites that `main` calls, in order."""
    names = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            function = (
                module[binding.value.op] if isinstance(getattr(binding.value, "op", 0), tvm.ir.GlobalVar) else None
            )
            if function is not None and function.attrs and "Composite" in function.attrs:
                names.append(str(function.attrs["Composite"]).removeprefix("quantvm."))
    return names


def operators(module: tvm.IRModule) -> list[str]:
    """Returns the Relax operators left in `main`, in order."""
    values = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    return [v.op.name.removeprefix("relax.") for v in values if hasattr(getattr(v, "op", None), "name")]


def gate(q: Qdq, x: Any, shift: float = 3.0, high: float = 6.0) -> Any:
    return q.emit(op.clip(q.emit(op.add(x, relax.const(np.float32(shift)))), 0, high))


def hardsigmoid(q: Qdq, x: Any, **constants: float) -> Any:
    return q.emit(op.divide(gate(q, q.dequantized(x), **constants), relax.const(np.float32(6))))


def hardswish(q: Qdq, x: Any) -> Any:
    real = q.dequantized(x)
    return q.emit(op.divide(q.emit(op.multiply(real, gate(q, real))), relax.const(np.float32(6))))


def contraction(q: Qdq, y: Any, bias_shape: tuple[int, ...] | None, relu: bool) -> Any:
    if bias_shape is not None:
        y = q.emit(op.add(y, relax.const(np.ones(bias_shape, "float32"))))
    return q.quantized(q.emit(op.nn.relu(y)) if relu else y, 0.7, 3)


def conv2d(q: Qdq, x: Any, bias: bool = True, relu: bool = False) -> Any:
    y = q.emit(op.nn.conv2d(q.dequantized(x), q.weight(5, 8, 3, 3)))
    return contraction(q, y, (1, 5, 1, 1) if bias else None, relu)


def linear(q: Qdq, x: Any, bias: bool = True, relu: bool = False) -> Any:
    y = q.emit(op.matmul(q.dequantized(x), q.emit(op.permute_dims(q.weight(5, 6), [1, 0]))))
    return contraction(q, y, (1, 5) if bias else None, relu)


def unary(function: Callable[[Any], Any], *out: Any) -> Callable[..., Any]:
    return lambda q, x: q.quantized(q.emit(function(q.dequantized(x))), *out)


def binary(function: Callable[[Any, Any], Any], relu: bool = False) -> Callable[..., Any]:
    def body(q: Qdq, a: Any, b: Any) -> Any:
        y = q.emit(function(q.dequantized(a), q.dequantized(b, 0.1, 3)))
        return q.quantized(q.emit(op.nn.relu(y)) if relu else y, 0.2, 7)

    return body


def island(x: Any) -> Any:
    """Marks what the program itself dequantized."""
    return op.astype(x, "float32")


GAMMA_BETA = [relax.const(np.full((6, 6), value, np.float32)) for value in (0.5, 2.0)]


def affine(shape: tuple[int, ...], before: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """Returns fl(x*a) + b with constants of a shape, quantized."""
    a, b = (relax.const(np.full(shape, value, np.float32)) for value in (0.5, 2.0))

    def body(q: Qdq, x: Any) -> Any:
        real = q.dequantized(x) if before is None else q.emit(before(q.dequantized(x)))
        return q.quantized(q.emit(op.add(q.emit(op.multiply(real, a)), b)))

    return body


def concat(count: int, axis: int = 1) -> Callable[..., Any]:
    return lambda q, *xs: q.quantized(q.emit(op.concat([q.dequantized(x) for x in xs[:count]], axis)), 0.2, 7)


def silu(x, one=1.0):
    x = op.astype(x, "float32")
    return op.divide(x, op.add(op.exp(op.negative(x)), relax.const(one)))


def softsign(x, one=1.0):
    x = op.astype(x, "float32")
    return op.divide(x, op.add(op.abs(x), relax.const(one)))


def elu(q: Qdq, x: Any) -> Any:
    real, zero = q.dequantized(x), relax.const(np.float32(0))

    def times(y: Any, factor: float) -> Any:
        return q.emit(op.multiply(y, relax.const(np.float32(factor))))

    exp = q.emit(op.exp(times(q.emit(op.minimum(real, zero)), 0.7)))
    curve = times(q.emit(op.subtract(exp, relax.const(np.float32(1)))), 1.3)
    return times(q.emit(op.add(q.emit(op.maximum(real, zero)), curve)), 1.1)


def prelu(q: Qdq, x: Any) -> Any:
    slopes = q.emit(op.dequantize(relax.const(np.arange(8, dtype="uint8")), relax.const(0.1), relax.const(np.uint8(3))))
    return q.quantized(q.emit(op.nn.prelu(q.dequantized(x), slopes, axis=1)), 0.1, 9)


TAKEN = {
    "quantize": (lambda q, x: q.quantized(q.emit(op.nn.softmax(q.dequantized(x)))), [IMAGE], "dequantize quantize"),
    "dequantize": (lambda q, x: q.dequantized(x), [IMAGE], "dequantize"),
    "conv2d": (lambda q, x: conv2d(q, x), [IMAGE], "conv2d"),
    "conv2d without bias": (lambda q, x: conv2d(q, x, bias=False), [IMAGE], "conv2d"),
    "conv2d relu": (lambda q, x: conv2d(q, x, relu=True), [IMAGE], "conv2d"),
    "conv2d relu without bias": (lambda q, x: conv2d(q, x, bias=False, relu=True), [IMAGE], "conv2d"),
    "linear": (lambda q, x: linear(q, x), [(2, 6)], "linear"),
    "linear 3-d": (lambda q, x: linear(q, x, relu=True), [(2, 3, 6)], "linear"),
    "linear without bias": (lambda q, x: linear(q, x, bias=False), [(2, 6)], "linear"),
    "add": (binary(op.add), [IMAGE, IMAGE], "add"),
    "add relu": (binary(op.add, relu=True), [IMAGE, IMAGE], "add"),
    "mul": (binary(op.multiply), [IMAGE, IMAGE], "mul"),
    "mul by a gate": (binary(op.multiply), [IMAGE, (2, 8, 1, 1)], "mul"),
    "mul of a gate": (binary(op.multiply, relu=True), [(2, 8, 1, 1), IMAGE], "mul"),
    "concat": (concat(2), [IMAGE, IMAGE], "concat"),
    "concat of one": (concat(1), [IMAGE], "concat"),
    "concat of many": (concat(24), [IMAGE] * 24, "concat"),
    "concat along rows": (concat(2, axis=2), [IMAGE, IMAGE], "concat"),
    "hardswish": (lambda q, x: q.quantized(hardswish(q, x), 0.1, 9), [IMAGE], "hardswish"),
    "hardsigmoid": (lambda q, x: q.quantized(hardsigmoid(q, x), 1 / 256, 0), [IMAGE], "hardsigmoid"),
    "sigmoid": (unary(op.sigmoid, 1 / 256, 0), [IMAGE], "sigmoid"),
    "leaky_relu": (unary(op.nn.leakyrelu, 0.1, 3), [IMAGE], "leaky_relu"),
    "relu": (unary(op.nn.relu), [IMAGE], "relu"),
    "clip": (unary(lambda x: op.clip(x, 0, 6)), [IMAGE], "clip"),
    "max_pool2d": (unary(lambda x: op.nn.max_pool2d(x, [2, 2])), [IMAGE], "max_pool2d"),
    "avg_pool2d": (unary(lambda x: op.nn.avg_pool2d(x, [2, 2])), [IMAGE], "avg_pool2d"),
    "adaptive_avg_pool2d": (unary(lambda x: op.nn.adaptive_avg_pool2d(x, [1, 1])), [IMAGE], "adaptive_avg_pool2d"),
    "normalization of channels": (affine((1, 8, 1, 1), island), [IMAGE], "dequantize quantize_affine"),
    "batch_norm2d": (affine((1, 8, 1, 1)), [IMAGE], "batch_norm2d"),
    "layer_norm": (unary(lambda x: op.nn.layer_norm(x, *GAMMA_BETA, [-2, -1], 1e-5), 0.1, 3), [IMAGE], "layer_norm"),
    "tanh": (unary(op.tanh, 1 / 128, 128), [IMAGE], "tanh"),
    "gelu": (unary(op.nn.gelu, 0.1, 3), [IMAGE], "gelu"),
    "gelu of floats": (unary(lambda x: op.nn.gelu(op.astype(x, "float32")), 0.1, 3), [IMAGE], "gelu"),
    "gelu_tanh": (unary(lambda x: op.nn.gelu_tanh(op.astype(x, "float32")), 0.1, 3), [IMAGE], "gelu_tanh"),
    "softsign of floats": (unary(softsign, 0.1, 3), [IMAGE], "softsign"),
    "silu of floats": (unary(silu, 0.1, 3), [IMAGE], "silu"),
    "add_scalar": (unary(lambda x: op.add(x, relax.const(6.4)), 0.05 * 283 / 255, 0), [IMAGE], "add_scalar"),
    "mul_scalar": (unary(lambda x: op.multiply(x, relax.const(-2.0)), 0.1, 155), [IMAGE], "mul_scalar"),
    "mean": (unary(lambda x: op.mean(x, [2, 3])), [IMAGE], "mean"),
    "mean over channels": (unary(lambda x: op.mean(x, [1])), [IMAGE], "mean_of_axes"),
    "add of a gate": (binary(op.add), [(2, 8, 1, 1), IMAGE], "add"),
    "mul of a row": (binary(op.multiply), [IMAGE, (2, 8, 1, 6)], "mul"),
    "mul of another rank": (binary(op.multiply), [IMAGE, (6, 6)], "mul"),
    "mean of a 3-d tensor": (unary(lambda x: op.mean(x, [1, 2])), [(2, 8, 6)], "mean_of_axes"),
    "bilinear": (unary(lambda x: op.image.resize2d(x, (9, 4), layout="NCHW", method="linear")), [IMAGE], "bilinear"),
    "elu": (lambda q, x: q.quantized(elu(q, x), 0.1, 9), [IMAGE], "elu"),
    "prelu": (prelu, [IMAGE], "prelu"),
    "mean from the end": (unary(lambda x: op.mean(x, [-1, -2], keepdims=True)), [IMAGE], "mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_pattern_takes(name):
    body, shapes, expected = TAKEN[name]
    before = module_of(body, *shapes)
    after = fuse_qdq(before)
    assert composites(after) == expected.split()
    assert not {"quantize", "dequantize"} & set(operators(after))
    assert tvm.ir.assert_structural_equal(after["main"].ret_ty, before["main"].ret_ty) is None


def test_every_rule_has_a_case_above():
    assert {name for _, _, expected in TAKEN.values() for name in expected.split()} == legalized_names()
    assert {row[0].removeprefix("quantvm.") for row in all_patterns()} == legalized_names()


LEFT = {
    "no softsign": (unary(lambda x: softsign(x, 2.0), 0.1, 3), [IMAGE], "abs add divide"),
    "no silu": (unary(lambda x: silu(x, 2.0), 0.1, 3), [IMAGE], "negative exp add divide"),
    "mean over images": (unary(lambda x: op.mean(x, [0])), [IMAGE], "mean"),
    "mean to other parameters": (unary(lambda x: op.mean(x, [2, 3]), 0.1, 100), [IMAGE], "mean"),
    "relu to other parameters": (unary(op.nn.relu, 0.05, 99), [IMAGE], "nn.relu"),
    "relu to another dtype": (unary(op.nn.relu, 0.05, 100, "int8"), [IMAGE], "nn.relu"),
    "pool to other parameters": (unary(lambda x: op.nn.max_pool2d(x, [2, 2]), 0.1, 100), [IMAGE], "nn.max_pool2d"),
    "subtract": (binary(op.subtract), [IMAGE, IMAGE], "subtract"),
    "another gate": (
        lambda q, x: q.quantized(hardsigmoid(q, x, shift=2.0, high=4.0), 1 / 256, 0), [IMAGE], "add clip divide",
    ),
    "softmax": (unary(op.nn.softmax), [IMAGE], "nn.softmax"),
    "sigmoid of a float island": (unary(lambda x: op.sigmoid(island(x)), 1 / 256, 0), [IMAGE], "sigmoid"),
    "relu of a float island": (unary(lambda x: op.nn.relu(island(x))), [IMAGE], "nn.relu"),
    "layer_norm over channels": (
        unary(lambda x: op.nn.layer_norm(x, *(relax.const(np.ones(8, "float32")),) * 2, [1])), [IMAGE], "nn.layer_norm",
    ),
    "add of a number to other parameters": (
        unary(lambda x: op.add(x, relax.const(6.4)), 0.06, 0), [IMAGE], "add",
    ),
    "normalization of columns": (affine((6,)), [IMAGE], "multiply add"),
    "normalization of all": (affine(()), [IMAGE], "multiply add"),
    "normalization of a 2-d tensor": (affine((1, 6)), [(2, 6)], "multiply add"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_pattern_leaves_float_and_lowering_says_so(name):
    body, shapes, expected = LEFT[name]
    module = module_of(body, *shapes)
    fused = fuse_qdq(module)
    assert set(composites(fused)) == {"dequantize", "quantize"}
    assert [name for name in operators(fused) if name != "astype"] == expected.split()
    lowered, report = lower(module, LoweringOptions(native_target()))
    assert [entry.split(" ")[0] for entry in report.float_ops] == expected.split()
    assert not {"quantize", "dequantize", *expected.split()} & set(operators(lowered))


def test_activation_quantized_per_channel_stays_float():
    def body(q: Qdq, x: Any) -> Any:
        return q.dequantized(x, np.full(8, 0.1, "float32"), np.zeros(8, "uint8"), axis=1)

    module = module_of(body, IMAGE)
    assert composites(fuse_qdq(module)) == []
    assert lower(module, LoweringOptions(native_target()))[1].float_ops[0].startswith("dequantize ")


def test_mean_of_everything_stays_float_and_its_scalar_is_quantized():
    fused = fuse_qdq(module_of(unary(lambda x: op.mean(x)), IMAGE))
    assert composites(fused) == ["dequantize", "quantize"]
    assert operators(fused) == ["mean"]


def test_weight_that_is_no_constant_stays_float():
    def body(q: Qdq, x: Any, w: Any) -> Any:
        return q.quantized(q.emit(op.nn.conv2d(q.dequantized(x), q.dequantized(w))))

    _, report = lower(module_of(body, IMAGE, (5, 8, 3, 3)), LoweringOptions(native_target()))
    assert [entry.split(" ")[0] for entry in report.float_ops] == ["nn.conv2d"]
    assert (report.int8_macs, report.float_macs) == (0, 5 * 4 * 4 * 8 * 9)


# ------------------------------------------------------------------ multiply-adds


def float_conv(q: Qdq, x: Any, groups: int = 1) -> Any:
    weight = relax.const(np.ones((8, 8 // groups, 3, 3), "float32"))
    return q.emit(op.nn.conv2d(q.dequantized(x), weight, groups=groups, padding=1))


@pytest.mark.parametrize(
    ("body", "shape", "macs"),
    [
        (lambda q, x: float_conv(q, x), IMAGE, 6 * 6 * 8 * 8 * 9),
        (lambda q, x: float_conv(q, x, groups=8), IMAGE, 6 * 6 * 8 * 9),
        (lambda q, x: q.emit(op.matmul(q.dequantized(x), relax.const(np.ones((6, 5), "float32")))), (2, 6), 30),
        (lambda q, x: q.emit(op.matmul(q.dequantized(x), relax.const(np.ones((6, 5), "float32")))), (2, 3, 6), 90),
        (lambda q, x: q.emit(op.nn.softmax(q.dequantized(x))), IMAGE, 0),
    ],
)
def test_float_multiply_adds_are_counted_per_image(body, shape, macs):
    _, report = lower(module_of(body, shape), LoweringOptions(native_target()))
    assert (report.int8_macs, report.float_macs) == (0, macs)
    assert report.int8_mac_share == (0.0 if macs else 1.0)


@pytest.mark.parametrize(
    ("body", "shape", "macs"),
    [
        (lambda q, x: conv2d(q, x), IMAGE, 4 * 4 * 5 * 8 * 9),
        (lambda q, x: linear(q, x), (2, 6), 30),
        (lambda q, x: linear(q, x), (2, 3, 6), 90),
    ],
)
def test_int8_multiply_adds_are_counted_per_image(body, shape, macs):
    _, report = lower(module_of(body, shape), LoweringOptions(native_target()))
    assert (report.int8_macs, report.float_macs) == (macs, 0)
    assert report.int8_mac_share == 1.0


def test_share_of_a_mixed_module():
    def body(q: Qdq, x: Any) -> Any:
        return q.emit(op.nn.conv2d(q.dequantized(conv2d(q, x), 0.7, 3), relax.const(np.ones((2, 5, 4, 4), "float32"))))

    _, report = lower(module_of(body, IMAGE), LoweringOptions(native_target()))
    int8, left = 4 * 4 * 5 * 8 * 9, 2 * 5 * 16
    assert (report.int8_macs, report.float_macs) == (int8, left)
    assert report.int8_mac_share == int8 / (int8 + left)
    assert [entry.split(" ")[0] for entry in report.float_ops] == ["nn.conv2d"]
