"""Faults put back on purpose, one at a time: `quantvm.compile` as users call it has to refuse each."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import DataType, relax, tirx

import quantvm
from quantvm.errors import VerificationError
from quantvm.frontend import builder
from quantvm.frontend.torchscript import contractions
from quantvm.kernels import arithmetic
from quantvm.kernels.conv import conv_emitter, requantize
from quantvm.kernels.float import program_emitter
from quantvm.lowering.qdq import legalize as qdq_legalize
from quantvm.lowering.qdq import region_reader
from quantvm.lowering.torch import contractions as contraction_lowerings
from quantvm.numerics import unary_tables
from quantvm.numerics.torch_engines import QuantParams
from quantvm.runtime import artifact
from tests.frontend import pt2e
from tests.quantized_modules import Quantized, conv2d, functional, image, linear

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGE = (1, 4, 6, 6)

# ------------------------------------------------------------------ models, each of a layer or two


class Residual(nn.Module):
    """A convolution whose result is added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.add = conv2d(4, 4, padding=1, seed=2), functional(0.5, 99)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.add.add(self.conv(x), x)


class Concatenation(nn.Module):
    """The input beside a convolution of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.join = conv2d(4, 4, 1, seed=3), functional(0.3, 90)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join.cat([x, self.conv(x)], 1)


class FloatNetwork(nn.Module):
    """Convolution, ReLU, average pool and a linear layer; the pool's result comes out, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.avg_pool2d(torch.relu(self.conv(x)), 3, 2, 1, count_include_pad=False)
        return x, self.fc(x.mean([2, 3]))


def eager(body: Any, *shape: int) -> Callable[[], tuple[Any, Any]]:
    return lambda: (Quantized(body()), image(*(shape or IMAGE)))


def exported(name: str) -> Callable[[], tuple[Any, Any]]:
    return lambda: (pt2e.quantize(FloatNetwork().eval(), image(2, 4, 6, 6), name), None)


def onnx_model() -> tuple[Any, Any]:
    """int8 activations, a convolution quantized per channel, and a max pool with a border on two sides."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)

    def params(name: str, scale: Any, zero_point: Any) -> list[Any]:
        return [numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"),
                numpy_helper.from_array(np.asarray(zero_point), f"{name}_zero")]  # fmt: skip

    constants = [
        numpy_helper.from_array(rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8), "weight"),
        *params("weight", rng.uniform(0.01, 0.02, 4), np.zeros(4, np.int8)),
        *params("x", 0.04, np.int8(-20)), *params("y", 0.5, np.int8(10)),
    ]  # fmt: skip

    def qdq(source: str, name: str) -> list[Any]:
        names = [f"{name}_scale", f"{name}_zero"]
        return [helper.make_node("QuantizeLinear", [source, *names], [f"{name}_q"]),
                helper.make_node("DequantizeLinear", [f"{name}_q", *names], [f"{name}_dq"])]  # fmt: skip

    nodes = [
        *qdq("input", "x"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["weight_dq"], axis=0),
        helper.make_node("Conv", ["x_dq", "weight_dq"], ["conv"], pads=[1, 1, 1, 1]),
        *qdq("conv", "y"),
        helper.make_node("MaxPool", ["y_dq"], ["output"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("input", kind, ["N", 4, 7, 7])],
        [helper.make_tensor_value_info("output", kind, None)], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), None


def tflite_file(folder: Path) -> tuple[Any, Any]:
    """Pools with borders, a concatenation, and a convolution with ReLU of one quantized image."""
    pytest.importorskip("tflite")
    pytest.importorskip("ai_edge_litert")
    from tests.frontend.test_tflite_kernels import ACT, IMAGE, KIND, OP, PADDING, Model, weight

    file = Model()
    file.pool("average", OP.AVERAGE_POOL_2D, PADDING.SAME, (3, 2), 3)
    file.pool("maximum", OP.MAX_POOL_2D, PADDING.SAME, (3, 2), 3)
    both = [*file.tensors[-1].shape[:3], 2 * IMAGE[3]]
    file.add(
        "both", OP.CONCATENATION, KIND.ConcatenationOptions, {"Axis": 3}, both, operands=("average_q", "maximum_q")
    )
    options = {"Padding": PADDING.SAME, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1,
               "FusedActivationFunction": ACT.RELU}  # fmt: skip
    file.add("conv", OP.CONV_2D, KIND.Conv2DOptions, options, [*IMAGE[:3], 4], 0.3, 5, weight("w", [4, 3, 3, 8], 0))
    path = folder / "network.tflite"
    path.write_bytes(file.data)
    return path, None


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "convolution": eager(lambda: conv2d(4, 8, padding=1, relu=True)),
    "strided": eager(lambda: conv2d(4, 8, padding=1, stride=(1, 2))),  # type: ignore[arg-type]
    "dilated": eager(lambda: conv2d(4, 8, padding=2, dilation=(2, 1))),  # type: ignore[arg-type]
    "grouped": eager(lambda: conv2d(8, 8, groups=2, seed=4), 1, 8, 6, 6),
    "linear": eager(lambda: linear(8, 8), 2, 8),
    "residual": eager(Residual),
    "concatenation": eager(Concatenation),
    "average": eager(lambda: nn.AvgPool2d(3, 2, 1)),
    "maximum": eager(lambda: nn.MaxPool2d(3, 2, 1)),
    "hardswish": eager(lambda: torch.ao.nn.quantized.Hardswish(0.03, 7)),
    "PT2E uint8": exported("x86"),
    "PT2E int8": exported("xnnpack"),
    "ONNX int8": onnx_model,
}


@functools.cache
def model(name: str) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS[name]()


def compiled(name: str, folder: Path) -> Any:
    program, example = tflite_file(folder) if name == "TFLite" else model(name)
    engine = None if example is None else "fbgemm"
    return quantvm.compile(program, example, engine=engine, threads=1, cache=False)


# ------------------------------------------------------------------ faults

Patch = pytest.MonkeyPatch


def operator(name: str, change: Callable[[Callable[..., Any], Any, dict[str, Any]], Any]) -> Callable[[Patch], None]:
    """An importer that emits another call of a Relax operator; `change` gets the operator and its arguments."""

    def inject(patch: Patch) -> None:
        *place, last = name.split(".")
        home = functools.reduce(getattr, place, relax.op)
        original = getattr(home, last)
        patch.setattr(home, last, lambda *args, **options: change(original, args, options))

    return inject


def options_changed(name: str, **changes: Callable[[Any], Any]) -> Callable[[Patch], None]:
    def change(original: Any, args: Any, options: dict[str, Any]) -> Any:
        given = inspect.signature(original).bind(*args, **options)
        given.apply_defaults()
        given.arguments.update({key: new(given.arguments[key]) for key, new in changes.items()})
        return original(*given.args, **given.kwargs)

    return operator(name, change)


def wrapped(home: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """A function whose result is changed; `change` gets it and the arguments."""

    def inject(patch: Patch) -> None:
        original = getattr(home, name)
        patch.setattr(home, name, lambda *args, **options: change(original(*args, **options), *args))

    return inject


def constants_of(rank: int, dtype: str, change: Callable[[np.ndarray], Any]) -> Callable[[Patch], None]:
    """An importer of TorchScript that writes other constants for convolutions and linear layers."""

    def inject(patch: Patch) -> None:
        original = contractions.constant

        def constant(value: Any, kind: str) -> Any:
            array = np.asarray(value)
            return original(change(array) if (array.ndim, kind) == (rank, dtype) else value, kind)

        patch.setattr(contractions, "constant", constant)

    return inject


def everywhere(name: str, value: Any, *modules: Any) -> Callable[[Patch], None]:
    def inject(patch: Patch) -> None:
        for module in modules:
            patch.setattr(module, name, value)

    return inject


def twice(original: Any, args: Any, options: dict[str, Any]) -> Any:
    is_residual = all(isinstance(arg, relax.Var) for arg in args)
    return original(original(*args), args[1]) if is_residual else original(*args, **options)


def shifted_border(padding: Any) -> list[int]:
    top, left, bottom, right = (int(p) for p in padding)
    return [0, 0, top + bottom, left + right]


def other_entry(result: Any, *args: Any) -> Any:
    changed = [np.array(table) for table in (result if isinstance(result, tuple) else (result,))]
    for table in changed:
        table[128:160] = table[127]
    return tuple(changed) if isinstance(result, tuple) else changed[0]


def off_by_one(r: Any, *args: Any) -> Any:
    return r if r.bias_f32 is None else dataclasses.replace(r, bias_f32=r.bias_f32 + np.float32(60))


def raw(q: QuantParams) -> QuantParams:
    return q if q.dtype == "uint8" else QuantParams(q.scale, max(q.zero_point, 0), "uint8")


def mirrored(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: original(torch.flip(torch.as_tensor(x), [-1]))


def upward(x: Any) -> Any:
    half = tirx.const(0.5, "float32")
    lanes = getattr(x.ty, "lanes", None) or DataType(str(x.ty.dtype)).lanes
    return tirx.floor(x + (half if lanes == 1 else tirx.Broadcast(half, lanes)))


def bounds_without_relu(self: Any) -> tuple[int, int]:
    return self._r.output.quant_min, self._r.output.quant_max


def narrower(self: Any) -> tuple[int, int]:
    low, high = self._r.output.quant_min, self._r.output.quant_max
    return (max(low, self._r.output.zero_point) if self._r.relu else low), high // 2


to_larger = everywhere("round_even", upward, requantize, arithmetic, program_emitter)

FAULTS: list[tuple[str, str, Callable[[Patch], None]]] = [
    # the importer
    ("border on the wrong sides", "convolution", options_changed("nn.conv2d", padding=shifted_border)),
    ("border on the wrong sides", "PT2E uint8", options_changed("nn.conv2d", padding=shifted_border)),
    ("border on the wrong sides", "maximum", options_changed("nn.max_pool2d", padding=shifted_border)),
    ("border on the wrong sides", "ONNX int8", options_changed("nn.max_pool2d", padding=lambda p: list(p)[::-1])),
    ("strides swapped", "strided", options_changed("nn.conv2d", strides=lambda s: list(s)[::-1])),
    ("dilation swapped", "dilated", options_changed("nn.conv2d", dilation=lambda d: list(d)[::-1])),
    ("groups in the wrong order", "grouped", constants_of(4, "int8", lambda w: np.roll(w, 4, 0))),
    ("weight's rows and columns swapped", "convolution", constants_of(4, "int8", lambda w: w.swapaxes(2, 3))),
    ("weight not transposed", "linear", operator("permute_dims", lambda op, args, options: args[0])),
    ("scales of channels permuted", "convolution", constants_of(1, "float32", lambda s: s[::-1])),
    ("scale of the first channel for all", "linear", constants_of(1, "float32", lambda s: np.full_like(s, s[0]))),
    ("bias dropped", "linear", everywhere("_bias", lambda bias, rank: None, contractions)),
    ("bias dropped", "PT2E int8", operator("add", lambda op, args, options: args[0])),
    ("ReLU dropped", "convolution", operator("nn.relu", lambda op, args, options: args[0])),
    ("residual added twice", "residual", operator("add", twice)),
    ("wrong axis", "concatenation", operator("concat", lambda op, args, options: op(args[0], 2))),
    ("border counted", "average", options_changed("nn.avg_pool2d", count_include_pad=lambda include: not include)),
    ("border counted", "PT2E uint8", options_changed("nn.avg_pool2d", count_include_pad=lambda include: not include)),
    ("mean over a wrong count", "PT2E int8", operator("mean", lambda op, a, o: op(
        relax.op.multiply(a[0], relax.const(1.25, "float32")), *a[1:], **o))),
    ("zero point off by one", "linear", wrapped(builder.QdqBuilder, "params", lambda q, *a: QuantParams(
        q.scale, q.zero_point + 1, q.dtype))),
    ("wrong scale", "residual", wrapped(builder.QdqBuilder, "params", lambda q, *a: QuantParams(
        float(np.float32(q.scale * 1.02)), q.zero_point, q.dtype))),
    ("border on the wrong sides", "TFLite", options_changed("nn.avg_pool2d", padding=lambda p: [2, 0, 0, 0])),
    ("tensors in another order", "TFLite", operator("concat", lambda op, args, options: op(
        list(args[0])[::-1], *args[1:], **options))),
    ("ReLU dropped", "TFLite", operator("clip", lambda op, args, options: args[0])),
    # the lowering
    ("int8 read raw", "PT2E int8", everywhere("unsigned", raw, region_reader, qdq_legalize)),
    ("int8 read raw", "ONNX int8", everywhere("unsigned", raw, region_reader, qdq_legalize)),
    ("constant off", "convolution", wrapped(contraction_lowerings, "requantization", off_by_one)),
    ("wrong entries of a table", "hardswish", wrapped(unary_tables, "unary_tables", other_entry)),
    # the kernels
    ("ties upward", "linear", to_larger),
    ("ties upward", "PT2E int8", to_larger),
    ("ties upward", "ONNX int8", to_larger),
    ("int8 read raw", "TFLite", everywhere("unsigned", raw, region_reader, qdq_legalize)),
    ("limits without ReLU", "convolution", lambda patch: patch.setattr(
        requantize.RequantizeEpilogue, "bounds", property(bounds_without_relu))),
    ("limits too narrow", "grouped", lambda patch: patch.setattr(
        requantize.RequantizeEpilogue, "bounds", property(narrower))),
    ("wrong zero point of the border", "convolution", lambda patch: patch.setattr(
        conv_emitter, "pack_weight", lambda shape, w, zero, dot, **more: PACK(shape, w, zero + 1, dot, **more))),
    # the run
    ("input mirrored", "convolution", lambda patch: patch.setattr(artifact, "given", mirrored(artifact.given))),
]  # fmt: skip
PACK = conv_emitter.pack_weight


@pytest.mark.parametrize("name", [*MODELS, "TFLite"])
def test_without_a_fault(name, tmp_path):
    found = compiled(name, tmp_path).verification
    assert found.verdict in ("exact", "ties", "bound"), found.text


@pytest.mark.parametrize(("fault", "name", "inject"), FAULTS, ids=[f"{fault}: {name}" for fault, name, _ in FAULTS])
def test_a_fault_is_caught(fault, name, inject, monkeypatch, tmp_path):
    if name != "TFLite":
        model(name)
    inject(monkeypatch)
    with pytest.raises(VerificationError) as caught:
        compiled(name, tmp_path)
    print(fault, name, str(caught.value)[:1200])
