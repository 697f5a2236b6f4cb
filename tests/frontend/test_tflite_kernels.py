"""Single TFLite operators, compiled by quantvm, against the reference kernels of LiteRT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quantvm
from quantvm.frontend import from_tflite
from quantvm.numerics import tflite as tflite_numerics
from quantvm.numerics.torch_engines import QuantParams
from quantvm.verification.litert import is_defined, needs_optimized_kernels
from quantvm.verification.qdq_definition import ExactQdq
from quantvm.verification.qdq_in_float import QdqInFloat

tflite = pytest.importorskip("tflite")
litert = pytest.importorskip("ai_edge_litert.interpreter")

from .tflite_file import FileOperator, FileTensor, model_bytes  # noqa: E402  (needs tflite)

OP, KIND, ACT, PADDING = tflite.BuiltinOperator, tflite.BuiltinOptions, tflite.ActivationFunctionType, tflite.Padding
IMAGE = [1, 10, 9, 8]
SCALE, ZERO = 0.043, -7
RNG = np.random.default_rng(0)


class Model:
    """A file of one input, quantized, and of an output for every operator on it."""

    def __init__(self, dtype: str = "int8") -> None:
        self.dtype, zero = dtype, ZERO if dtype == "int8" else ZERO + 128
        self.zero = zero
        self.tensors = [FileTensor("x", IMAGE, "float32"), FileTensor("q", IMAGE, dtype, SCALE, zero)]
        self.operators = [FileOperator(OP.QUANTIZE, ["x"], ["q"], KIND.QuantizeOptions)]
        self.outputs: list[str] = []

    def add(
        self, name: str, code: int, kind: int, options: dict[str, Any], shape: list[int], scale: float = SCALE,
        zero: int | None = None, constants: tuple[FileTensor, ...] = (), operands: tuple[str, ...] = ("q",),
        version: int = 3,
    ) -> None:  # fmt: skip
        """Adds an operator, and its output as floats."""
        zero = self.zero if zero is None else zero
        self.tensors += [*constants, FileTensor(f"{name}_q", shape, self.dtype, scale, zero)]
        self.tensors.append(FileTensor(name, shape, "float32"))
        inputs = [*operands, *(constant.name for constant in constants)]
        self.operators.append(FileOperator(code, inputs, [f"{name}_q"], kind, options, version))
        self.operators.append(FileOperator(OP.DEQUANTIZE, [f"{name}_q"], [name], KIND.DequantizeOptions))
        self.outputs.append(name)

    def pool(
        self, name: str, code: int, padding: int, window: tuple[int, int], stride: int, activation: int = 0
    ) -> None:
        """Adds a pool."""
        options = {
            "Padding": padding, "StrideH": stride, "StrideW": stride, "FilterHeight": window[0],
            "FilterWidth": window[1], "FusedActivationFunction": activation,
        }  # fmt: skip
        same = padding == PADDING.SAME
        out = [-(-s // stride) if same else (s - k) // stride + 1 for s, k in zip(IMAGE[1:3], window, strict=True)]
        self.add(name, code, KIND.Pool2DOptions, options, [1, *out, 8])

    def mean(self, name: str, keep: bool, scale: float, zero: int | None = None) -> None:
        """Adds a mean over height and width."""
        axes = FileTensor(f"{name}_axes", [2], "int32", value=np.array([1, 2], np.int32))
        shape = [1, 1, 1, 8] if keep else [1, 8]
        self.add(name, OP.MEAN, KIND.ReducerOptions, {"KeepDims": keep}, shape, scale, zero, (axes,))

    def averages(self) -> None:
        """Adds what rounds in a way of TFLite's own."""
        self.pool("avg_valid", OP.AVERAGE_POOL_2D, PADDING.VALID, (2, 2), 2)
        self.pool("avg_same", OP.AVERAGE_POOL_2D, PADDING.SAME, (2, 2), 2)
        self.pool("avg_same_odd", OP.AVERAGE_POOL_2D, PADDING.SAME, (3, 2), 3)
        self.pool("avg_relu6", OP.AVERAGE_POOL_2D, PADDING.SAME, (4, 3), 2, ACT.RELU6)
        self.mean("mean", True, SCALE)
        self.mean("mean_flat", False, SCALE)
        self.mean("mean_scaled", True, 0.0021)
        for name, axis, shape in (("mean_channels", 3, IMAGE[:3]), ("mean_rows", 1, [1, *IMAGE[2:]])):
            axes = FileTensor(f"{name}_axes", [1], "int32", value=np.array([axis], np.int32))
            self.add(name, OP.MEAN, KIND.ReducerOptions, {"KeepDims": False}, shape, 0.02, constants=(axes,))
        for name, axes, shape, scale in (("sum_channels", [3], IMAGE[:3], 0.2), ("sum_plane", [1, 2], [1, 8], 0.9)):
            axes = FileTensor(f"{name}_axes", [len(axes)], "int32", value=np.array(axes, np.int32))
            options = {"KeepDims": False}
            self.add(name, OP.SUM, KIND.ReducerOptions, options, shape, scale, constants=(axes,), version=2)
        zero = self.zero
        divisor = FileTensor("divisor", [9, 8], self.dtype, 0.05, zero, value=np.arange(72, dtype=self.dtype))
        divisor.value[divisor.value == zero] = 1
        self.add("div", OP.DIV, KIND.DivOptions, {}, IMAGE, 0.01, constants=(divisor,), version=2)
        least = FileTensor("least", [8], self.dtype, SCALE, zero, value=np.full(8, zero + 9, self.dtype))
        self.add("greater", OP.MAXIMUM, 0, {}, IMAGE, constants=(least,))
        self.add("div_relu", OP.DIV, KIND.DivOptions, {"FusedActivationFunction": ACT.RELU6}, IMAGE, 0.007,
                 operands=("q", "greater_q"), version=2)  # fmt: skip
        self.add("half", OP.QUANTIZE, KIND.QuantizeOptions, {}, IMAGE, 2 * SCALE)
        self.add("finer", OP.QUANTIZE, KIND.QuantizeOptions, {}, IMAGE, 0.03)

    @property
    def data(self) -> bytes:
        """The file."""
        return model_bytes(self.tensors, self.operators, ["x"], self.outputs)


def reference(data: bytes, x: np.ndarray, kernels: str = "BUILTIN_REF") -> dict[str, np.ndarray]:
    """Returns the outputs of LiteRT's kernels."""
    kind = getattr(litert.OpResolverType, kernels)
    interpreter = litert.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}


def compiled(tmp_path, data: bytes, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of compiled code."""
    (tmp_path / "model.tflite").write_bytes(data)
    outputs = quantvm.compile(tmp_path / "model.tflite", cache=False)(x)
    return dict(zip(names, outputs, strict=True))


def image(spread: float = 3.0) -> np.ndarray:
    """Returns an input whose first pixels lie half-way between two integers, but for what float32 cannot hold."""
    x = (RNG.standard_normal(IMAGE) * spread).astype(np.float32)
    x[0, 0] = (np.arange(72).reshape(9, 8) - 35.5) * np.float32(SCALE)
    return x


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_averages_round_as_tflite(tmp_path, dtype):
    model = Model(dtype)
    model.averages()
    x = image()
    halves = np.abs(x[0, 0] / np.float32(SCALE)) % 1 == 0.5
    assert halves.sum() > 20
    expected = reference(model.data, x)
    if dtype == "int8":  # the reference kernel of SUM reads it as uint8; QUANTIZE of the optimized ones is not that
        q = np.trunc(x / np.float32(SCALE) + np.copysign(np.float32(0.5), x)) + ZERO
        given = ((np.clip(q, -128, 127) - ZERO) * np.float32(SCALE)).astype(np.float32)
        optimized = reference(model.data, given, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
        for name, scale in (("sum_channels", 0.2), ("sum_plane", 0.9)):  # its DEQUANTIZE differs in last bits
            expected[name] = np.rint(optimized[name] / np.float32(scale)) * np.float32(scale)
    got = compiled(tmp_path, model.data, model.outputs, x)
    module = from_tflite(model.data)
    plain = dict(zip(model.outputs, QdqInFloat(module)(x), strict=True))
    exact = dict(zip(model.outputs, ExactQdq(module, divides=True)(x), strict=True))
    for name in model.outputs:
        assert len(np.unique(expected[name])) > 4, name
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        np.testing.assert_array_equal(plain[name], expected[name], err_msg=f"{name} in float")
        np.testing.assert_array_equal(exact[name], expected[name], err_msg=f"{name} by its definition")


def weight(name: str, shape: list[int], axis: int) -> tuple[FileTensor, FileTensor]:
    """Returns a weight per channel and a bias."""
    scales = RNG.uniform(0.002, 0.02, shape[axis]).astype(np.float32)
    values = RNG.integers(-127, 128, shape).astype(np.int8)
    bias = RNG.integers(-2000, 2000, len(scales)).astype(np.int32)
    return (
        FileTensor(name, shape, "int8", scales, 0, axis, values),
        FileTensor(f"{name}_bias", [len(scales)], "int32", scales * np.float32(SCALE), 0, 0, bias),
    )


def test_other_operators_are_equal_or_a_step_away(tmp_path):
    """The second list holds the greatest share of elements that may differ, by one step: docs/numerics.md."""
    model = Model()
    conv = {"Padding": PADDING.SAME, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    for name, code in (("relu", OP.RELU), ("maximum", OP.MAXIMUM)):
        model.add(name, code, 0, {}, IMAGE, operands=("q", "q") if name == "maximum" else ("q",))
    model.add("logistic", OP.LOGISTIC, 0, {}, IMAGE, 1 / 256, -128)
    model.add("tanh", OP.TANH, 0, {}, IMAGE, 1 / 128, 0)
    model.pool("max_same", OP.MAX_POOL_2D, PADDING.SAME, (2, 2), 2)
    model.pool("max_same_odd", OP.MAX_POOL_2D, PADDING.SAME, (3, 2), 3, ACT.RELU)
    both = [*IMAGE[:3], 2 * IMAGE[3]]
    model.add("concat", OP.CONCATENATION, KIND.ConcatenationOptions, {"Axis": 3}, both, operands=("q", "max_q"))
    model.tensors.append(FileTensor("max_q", IMAGE, "int8", SCALE, ZERO))
    model.operators.insert(1, FileOperator(OP.MAXIMUM, ["q", "q"], ["max_q"]))
    shares = dict.fromkeys(model.outputs, 0.0)
    model.add("conv", OP.CONV_2D, KIND.Conv2DOptions, conv, [1, 10, 9, 12], 0.3, 5, weight("w", [12, 3, 3, 8], 0))
    model.add(
        "depthwise", OP.DEPTHWISE_CONV_2D, KIND.DepthwiseConv2DOptions, {**conv, "DepthMultiplier": 1}, IMAGE, 0.1, 5,
        weight("wd", [1, 3, 3, 8], 3),
    )  # fmt: skip
    model.add("other", OP.QUANTIZE, KIND.QuantizeOptions, {}, IMAGE, 0.021, 11)
    for name, code, kind in (
        ("add", OP.ADD, KIND.AddOptions), ("sub", OP.SUB, KIND.SubOptions), ("mul", OP.MUL, KIND.MulOptions),
    ):  # fmt: skip
        model.add(name, code, kind, {}, IMAGE, 0.06, -3, operands=("q", "other_q"))
    model.add("hardswish", OP.HARD_SWISH, KIND.HardSwishOptions, {}, IMAGE, 0.03, -110, version=1)
    shares.update(other=0.0, conv=0.01, depthwise=0.01, add=0.01, sub=0.01, mul=0.01, hardswish=0.02)
    x = image(1.5)
    expected, got = reference(model.data, x), compiled(tmp_path, model.data, model.outputs, x)
    exact = dict(zip(model.outputs, ExactQdq(from_tflite(model.data), divides=True)(x), strict=True))
    steps = {tensor.name: tensor.scale for tensor in model.tensors}
    for name in model.outputs:
        apart = np.abs(got[name] - expected[name]) / np.float32(steps[f"{name}_q"])
        assert len(np.unique(expected[name])) > 20, name
        assert apart.max() < 1.01, name
        if name != "logistic" and name != "tanh":  # whose exp may differ in the last bit
            np.testing.assert_array_equal(got[name], exact[name], err_msg=name)
        assert (apart > 0.5).mean() <= shares[name], (name, (apart > 0.5).mean())


@pytest.mark.parametrize(("q", "divisor_q", "out_q", "share"), [
    ((0.068, 2), (0.0059, -59), (0.0021, -84), 0), ((0.1, 0), (0.05, 0), (0.01, 0), 0),
    ((0.07, -31), (0.0717, 47), (0.0895, 52), 0.02),
])  # fmt: skip
def test_quotients(q, divisor_q, out_q, share):
    """All quotients that are defined are LiteRT's; the others are less than half a step."""
    parameters = [QuantParams(scale, zero, "int8") for scale, zero in (q, divisor_q, out_q)]
    table, defined = tflite_numerics.quotients(*parameters, -128, 127)
    integers = np.arange(-128, 128)
    divisors = integers[integers != divisor_q[1]]
    tensors = [
        FileTensor("x", [256, 1], "float32"), FileTensor("a", [256, 1], "int8", *q),
        FileTensor("b", [255], "int8", *divisor_q, value=divisors.astype(np.int8)),
        FileTensor("c", [256, 255], "int8", *out_q), FileTensor("y", [256, 255], "float32"),
    ]  # fmt: skip
    operators = [
        FileOperator(OP.QUANTIZE, ["x"], ["a"], KIND.QuantizeOptions),
        FileOperator(OP.DIV, ["a", "b"], ["c"], KIND.DivOptions, version=2),
        FileOperator(OP.DEQUANTIZE, ["c"], ["y"], KIND.DequantizeOptions),
    ]  # fmt: skip
    x = ((integers - q[1]) * np.float32(q[0])).astype(np.float32)[:, None]
    y = reference(model_bytes(tensors, operators, ["x"], ["y"]), x)["y"]
    found = np.rint(y / np.float32(out_q[0])).astype(int) + out_q[1]
    table, defined = table[:, divisors + 128], defined[:, divisors + 128]
    np.testing.assert_array_equal(table[defined], found[defined])
    assert (~defined).mean() <= share
    assert (~defined).any() == (share > 0)
    real = (integers - q[1])[:, None] * q[0] / ((divisors - divisor_q[1]) * divisor_q[0]) / out_q[0]
    assert np.abs(real[~defined]).max(initial=0) < 0.5
    assert (table[~defined] == out_q[1]).all()


def test_which_kernels_are_the_reference(tmp_path):
    path, found = tmp_path / "model.tflite", {}
    for dtype in ("int8", "uint8"):
        for scale in (0.01, 0.1):
            model = Model(dtype)
            divisor = FileTensor("d", [8], dtype, 0.05, model.zero, value=np.full(8, model.zero + 100, dtype))
            model.add("div", OP.DIV, KIND.DivOptions, {}, IMAGE, scale, constants=(divisor,), version=2)
            if scale == 0.01:
                axes = FileTensor("axes", [1], "int32", value=np.array([3], np.int32))
                model.add("sum", OP.SUM, KIND.ReducerOptions, {}, IMAGE[:3], constants=(axes,), version=2)
            path.write_bytes(model.data)
            found[dtype, scale] = (needs_optimized_kernels(path), is_defined(path))
    assert found == {
        ("int8", 0.01): (True, True), ("uint8", 0.01): (False, True),
        ("int8", 0.1): (False, False), ("uint8", 0.1): (False, False),
    }  # fmt: skip


def test_formulas():
    """Numbers that were taken from the reference kernels: a mean rounds twice, so that 3/8 becomes 1."""
    q = QuantParams(0.5, 0, "int8")
    assert tflite_numerics.average([-5, -4, -3, 3, 4, 5], 2).tolist() == [-3, -2, -2, 2, 2, 3]
    assert tflite_numerics.mean(np.array([2, 3, 4, -4, -5]), 8, q, q).tolist() == [0, 1, 1, -1, -1]
    twice = QuantParams(1.0, 3, "int8")
    assert tflite_numerics.requantize([-3, -1, 1, 3, 127], q, twice).tolist() == [2, 3, 4, 5, 67]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0.1, (-118, -58)), (4.0, (-128, -126)), (12.0, (-128, -127)),
        (float(np.nextafter(np.float32(12), np.float32(13))), (-128, -128)),  # 6 / scale is just below a half
    ],
)  # fmt: skip
def test_activations_clip_where_litert_rounds(scale, expected):
    import tflite

    from quantvm.frontend.tflite.converters import _limits

    zero_point = -118 if scale == 0.1 else -128
    q = QuantParams(scale, zero_point, "int8")
    assert _limits(tflite.ActivationFunctionType.RELU6, q) == expected
    assert _limits(tflite.ActivationFunctionType.NONE, q) == (-128, 127)
