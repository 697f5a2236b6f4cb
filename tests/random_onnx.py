"""Random ONNX graphs in QDQ form, built by a plan; random_onnx_plans.py draws plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .random_network import Step


@dataclass(frozen=True)
class OnnxPlan:
    """A graph: the shape of its input without the batch, the operators in order, and which values it returns.

    Values are numbered from 0, the input; each step makes one, and says in its option `quantized` as (dtype, scale,
    zero point) whether it is quantized and dequantized again. All random numbers come from the seed.
    """

    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    seed: int


class Graph:
    """A graph under construction, of which the shapes are known.

    Args:
        opset: of ONNX.
        batch: a number, or a name where it is symbolic.
    """

    def __init__(self, opset: int, batch: int | str = 2) -> None:
        self.opset, self.batch = opset, batch
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[str] = []
        self._types: dict[str, Any] = {}

    def input(self, shape: Sequence[int]) -> str:
        """Adds an input of one image's shape; returns its name."""
        info = helper.make_tensor_value_info(f"x{len(self.inputs)}", TensorProto.FLOAT, [self.batch, *shape])
        self.inputs.append(info)
        self._types[info.name] = info.type
        return str(info.name)

    def constant(self, value: Any) -> str:
        """Adds an initializer; returns its name."""
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(value)
        dtype = helper.np_dtype_to_tensor_dtype(self.initializers[name].dtype)
        self._types[name] = helper.make_tensor_type_proto(dtype, self.initializers[name].shape)
        return name

    def emit(self, op: str, *inputs: str, n_outputs: int = 1, **attributes: Any) -> str:
        """Adds a node; returns the name of its first result.

        Raises:
            ValueError: the operator takes no such inputs.
        """
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(n_outputs)]
        node = helper.make_node(op, list(inputs), outputs, name=f"{op}_{len(self.nodes)}", **attributes)
        known = {n: numpy_helper.from_array(self.initializers[n], n) for n in inputs if n in self.initializers}
        try:
            schema = onnx.defs.get_schema(op, self.opset)
            types = onnx.shape_inference.infer_node_outputs(
                schema, node, {n: self._types[n] for n in inputs if n}, known,
                opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8,
            )  # fmt: skip
        except Exception as error:  # its checker and its shape inference raise kinds of their own
            raise ValueError(str(error)) from error
        self._types.update(types)
        self.nodes.append(node)
        return outputs[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of one image's value.

        Raises:
            ValueError: it is not known, or the batch is no more its first dimension.
        """
        if name not in self._types:
            raise ValueError(f"the type of {name} is not known")
        dims = self._types[name].tensor_type.shape.dim
        batch = (dims[0].dim_param or dims[0].dim_value) if dims else None
        sizes = tuple(d.dim_value for d in dims[1:])
        if batch != self.batch or 0 in sizes:
            raise ValueError(f"{name} has an unknown shape, or no batch")
        return sizes

    def fake(self, x: str, quantized: tuple[str, float, int] | None) -> str:
        """Quantizes and dequantizes a value if so asked."""
        if quantized is None:
            return x
        dtype, scale, zero_point = quantized
        parameters = self.constant(np.float32(scale)), self.constant(np.dtype(dtype).type(zero_point))
        return self.emit("DequantizeLinear", self.emit("QuantizeLinear", x, *parameters), *parameters)

    def model(self) -> Any:
        """Returns the `onnx.ModelProto`."""
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def add_plan(graph: Graph, plan: OnnxPlan, *, in_float: bool = False) -> None:
    """Adds a plan's operators and outputs, without quantization if so asked."""
    values = [graph.input(plan.input_shape)]
    for index, step in enumerate(plan.steps):
        values.append(add_step(graph, step, values, plan.seed + index, in_float=in_float))
    # each output is a value of its own, for a name can be returned once
    graph.outputs += [graph.emit("Identity", values[i]) for i in plan.outputs]


def add_step(graph: Graph, step: Step, values: Sequence[str], seed: int, *, in_float: bool = False) -> str:
    """Adds one operator, with what it is quantized by; returns the name of its result.

    Raises:
        ValueError: the operator takes no such inputs.
    """
    options = dict(step.options)
    quantized = options.pop("quantized", None)
    make = _Make(graph, np.random.default_rng(seed), in_float)
    result = BUILDERS[step.op](make, [values[i] for i in step.inputs], options)
    graph.shape(result)
    return graph.fake(result, None if in_float else quantized)


@dataclass
class _Make:
    """What builders add nodes by."""

    graph: Graph
    rng: np.random.Generator
    in_float: bool

    def weight(self, shape: tuple[int, ...], form: str, axis: int = 0) -> str:
        """Returns a weight in one of `WEIGHT_FORMS`, of values that keep the spread of activations."""
        graph, rng = self.graph, self.rng
        fan_in = int(np.prod(shape)) // shape[axis]
        real = rng.normal(0, (1.5 / fan_in) ** 0.5, shape).astype(np.float32)
        if self.in_float or form == "float":
            return graph.constant(real)
        per_channel = "channel" in form
        bounds = (
            np.abs(real).max(axis=tuple(i for i in range(len(shape)) if i != axis))
            if per_channel
            else np.abs(real).max()
        )
        scale = (np.maximum(bounds, 1e-3) / 127).astype(np.float32)
        dtype = np.uint8 if "uint8" in form else np.int8
        zero = np.full(scale.shape, 128 if dtype == np.uint8 else 0, dtype)
        if "shifted" in form:
            zero = (zero + rng.integers(-9, 10, scale.shape)).astype(dtype)
        attributes = {"axis": axis} if per_channel else {}
        spread = [-1 if i == axis else 1 for i in range(len(shape))]
        steps, zeros = (v.reshape(spread) if per_channel else v for v in (scale, zero))
        integers = np.clip(np.rint(real / steps) + zeros, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
        parameters = graph.constant(scale), graph.constant(zero)
        if "float" in form:
            stored = graph.emit("QuantizeLinear", graph.constant(real), *parameters, **attributes)
        elif "transposed" in form:
            order = tuple(reversed(range(len(shape))))
            attributes = {"axis": len(shape) - 1 - axis} if per_channel else {}
            whole = graph.emit("DequantizeLinear", graph.constant(integers.transpose(order)), *parameters, **attributes)
            return graph.emit("Transpose", whole, perm=order)
        elif "reshaped" in form:
            flat = integers.reshape(shape[0], -1) if axis == 0 else integers.reshape(1, *shape)
            attributes = {"axis": 0 if axis == 0 else axis + 1} if per_channel else {}
            whole = graph.emit("DequantizeLinear", graph.constant(flat), *parameters, **attributes)
            return graph.emit("Reshape", whole, graph.constant(np.array(shape, np.int64)))
        else:
            stored = graph.constant(integers)
        return graph.emit("DequantizeLinear", stored, *parameters, **attributes)

    def bias(self, size: int, form: str) -> list[str]:
        """Returns no bias, one in float, or one of int32."""
        if form == "none":
            return []
        real = self.rng.normal(0, 0.3, size).astype(np.float32)
        if self.in_float or form == "float":
            return [self.graph.constant(real)]
        scale = np.full(size, 1e-4, np.float32)
        integers, zero = np.rint(real / scale).astype(np.int32), np.zeros(size, np.int32)
        constants = [self.graph.constant(v) for v in (integers, scale, zero)]
        return [self.graph.emit("DequantizeLinear", *constants, axis=0)]

    def real(self, *shape: int) -> str:
        """Returns a float constant around one."""
        return self.graph.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))


WEIGHT_FORMS = (
    "int8", "int8 channel", "int8 channel", "uint8", "int8 shifted", "int8 channel shifted", "float int8",
    "float int8 channel", "transposed int8", "transposed int8 channel", "reshaped int8", "reshaped int8 channel",
    "float",
)  # fmt: skip
BIAS_FORMS = ("none", "float", "int32")


# ------------------------------------------------------------------ builders: (make, names of inputs, options) -> name


def _conv(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    graph = make.graph
    channels = graph.shape(inputs[0])[0]
    shape = (options["channels"], channels // options["groups"], *options["kernel"])
    weight = make.weight(shape, options["weight"])
    attributes = {k: options[k] for k in ("strides", "dilations", "pads", "auto_pad") if k in options}
    bias = make.bias(options["channels"], options["bias"])
    return graph.emit("Conv", inputs[0], weight, *bias, group=options["groups"], **attributes)


def _conv_transpose(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    channels = make.graph.shape(inputs[0])[0]
    weight = make.weight((channels, options["channels"], *options["kernel"]), "int8", axis=1)
    return make.graph.emit("ConvTranspose", inputs[0], weight, strides=options["strides"])


def _gemm(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    (features,) = make.graph.shape(inputs[0])
    shape = (options["features"], features) if options["transB"] else (features, options["features"])
    weight = make.weight(shape, options["weight"], axis=0 if options["transB"] else 1)
    bias = make.bias(options["features"], options["bias"])
    attributes = {k: options[k] for k in ("alpha", "beta") if options[k] != 1}
    return make.graph.emit("Gemm", inputs[0], weight, *bias, transB=options["transB"], **attributes)


def _matmul(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    if len(inputs) == 2:
        return make.graph.emit("MatMul", *inputs)
    shape = (make.graph.shape(inputs[0])[-1], options["features"])
    product = make.graph.emit("MatMul", inputs[0], make.weight(shape, options["weight"], axis=1))
    bias = make.bias(options["features"], options["bias"])
    return make.graph.emit("Add", product, *bias) if bias else product


def _with_constant(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    """An operator of a value and a constant: of no dimension, of one channel each, or quantized."""
    shape = make.graph.shape(inputs[0])
    sizes = {"scalar": (), "channels": (1, shape[0], *[1] * (len(shape) - 1)), "last": (shape[-1],)}[options["shape"]]
    constant = make.real(*sizes)
    if options["constant_quantized"] and not make.in_float:
        constant = make.graph.fake(constant, ("uint8", 0.01, 3))
    operands = [constant, inputs[0]] if options["first"] else [inputs[0], constant]
    if options["name"] == "Pow":  # of a negative base it is no number, and quantizing that is nobody's promise
        operands[0] = make.graph.emit("Abs", operands[0])
    if options["name"] == "Div":  # likewise zero by zero
        operands = [inputs[0], constant]
    return make.graph.emit(options["name"], *operands)


def _clip(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    limits = [make.graph.constant(np.float32(v)) if v is not None else "" for v in options["limits"]]
    return make.graph.emit("Clip", inputs[0], *limits)


def _norm(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    shape = make.graph.shape(inputs[0])
    if options["name"] == "LayerNormalization":
        return make.graph.emit("LayerNormalization", inputs[0], make.real(shape[-1]), make.real(shape[-1]), axis=-1)
    return make.graph.emit("BatchNormalization", inputs[0], *(make.real(shape[0]) for _ in range(4)))


def _prelu(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    shape = make.graph.shape(inputs[0])
    return make.graph.emit("PRelu", inputs[0], make.real(shape[0], *[1] * (len(shape) - 1)))


def _reduce(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    name, axes, keep = options["name"], options["axes"], int(options["keepdims"])
    if make.graph.opset < 18:
        return make.graph.emit(name, inputs[0], axes=axes, keepdims=keep)
    return make.graph.emit(name, inputs[0], make.graph.constant(np.array(axes, np.int64)), keepdims=keep)


def _pad(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    pads = make.graph.constant(np.array(options["pads"], np.int64))
    value = [make.graph.constant(np.float32(options["value"]))] if options["mode"] == "constant" else []
    return make.graph.emit("Pad", inputs[0], pads, *value, mode=options["mode"])


def _of_integers(op: str, *names: str) -> Callable[[_Make, list[str], dict[str, Any]], str]:
    """Returns the builder of an operator whose options of these names are inputs, int64 constants."""

    def build(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
        constants = [make.graph.constant(np.array(options[name], np.int64)) for name in names]
        return make.graph.emit(op, inputs[0], *constants)

    return build


def _resize(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    attributes = {k: options[k] for k in ("mode", "coordinate_transformation_mode", "nearest_mode") if k in options}
    scales = make.graph.constant(np.array([1, 1, *options["scales"]], np.float32))
    return make.graph.emit("Resize", inputs[0], "", scales, **attributes)


def _split(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    sizes = make.graph.constant(np.array(options["sizes"], np.int64))
    first = make.graph.emit("Split", inputs[0], sizes, n_outputs=len(options["sizes"]), axis=options["axis"])
    return first.rsplit("_", 1)[0] + f"_{options['index']}"


def _plain(make: _Make, inputs: list[str], options: dict[str, Any]) -> str:
    options = dict(options)
    if options["name"] == "Sqrt":  # of what is negative it is no number, and quantizing that is nobody's promise
        inputs = [make.graph.emit("Abs", *inputs)]
    return make.graph.emit(options.pop("name"), *inputs, **options)


BUILDERS: dict[str, Callable[[_Make, list[str], dict[str, Any]], str]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "constant": _with_constant,
    "Clip": _clip, "norm": _norm, "PRelu": _prelu, "reduce": _reduce, "Pad": _pad, "Resize": _resize, "Split": _split,
    "Slice": _of_integers("Slice", "starts", "ends", "axes", "steps"), "Tile": _of_integers("Tile", "repeats"),
    "Reshape": _of_integers("Reshape", "shape"), "Unsqueeze": _of_integers("Unsqueeze", "axes"),
    "Squeeze": _of_integers("Squeeze", "axes"), "plain": _plain,
}  # fmt: skip
