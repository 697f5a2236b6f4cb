"""Brings the output of TVM's own importers into the QDQ form that the lowering knows.

In that form dequantized constants stay integers, and each use of a quantized tensor has its own dequantize. A bias is
the second operand of its add, and the weight of a linear layer is permute_dims(dequantize(integers (N, K))).
Computations on constants are folded, and a clip is one operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from quantvm.errors import ModelImportError
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.float_operators import FLOAT_OPERATORS
from quantvm.qdq.bindings import bindings_of
from quantvm.qdq.expressions import Expr, constant_value, is_call, is_constant, op_name, same_shape, size_of
from quantvm.qdq.rewriting import Rewriter, with_arguments

from .builder import QdqBuilder, constant, shape_of
from .folding import folded

_INHERITS = frozenset(
    f"relax.{name}"
    for name in (
        "add", "quantize", "call_tir", "nn.relu", "clip",
        *(FLOAT_OPERATORS[name].relax for name in ACTIVATIONS if name in FLOAT_OPERATORS),
    )
)  # fmt: skip
"""Operators that belong to the same layer as the operator before them."""
_CONTRACTIONS = ("relax.nn.conv2d", "relax.nn.conv1d", "relax.nn.conv2d_transpose", "relax.matmul")


@dataclass(frozen=True)
class _Dequantized:
    """A dequantize with constant parameters, emitted again for each use."""

    integers: Expr
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    def is_kept_by(self, call: Any, scale: np.ndarray, zero_point: np.ndarray) -> bool:
        """Returns whether a quantize with these parameters returns the original integers."""
        return (
            np.array_equal(self.scale, scale)
            and np.array_equal(self.zero_point, zero_point)
            and str(call.attrs.out_dtype) == str(self.integers.ty.dtype)
            and (self.scale.ndim == 0 or int(call.attrs.axis) == self.axis)
        )


def in_qdq_form(module: tvm.IRModule, layer_names: list[str]) -> tvm.IRModule:
    """Returns the module with `main` in canonical QDQ form, its parameters named as `from_torch` names them.

    Args and errors: as `qdq_form_with_tensors`.
    """
    return qdq_form_with_tensors(module, layer_names, [])[0]


def qdq_form_with_tensors(
    module: tvm.IRModule, layer_names: list[str], tensor_names: list[str]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Returns what `in_qdq_form` does, and for each variable that a quantize makes, the tensor's name in the file.

    Args:
        module: the output of one of TVM's importers, with constants bound.
        layer_names: names of the convolutions and matrix products, in order; ignored if their number differs.
        tensor_names: names of the results of quantizes, in order; ignored if their number differs.

    Raises:
        ModelImportError: control flow, an input that is not float32, or quantization parameters computed at run
            time.
    """
    former = _QdqRewriter(module, layer_names, tensor_names)
    return relax.transform.DeadCodeElimination()(former.go()), former.tensors


def _input(param: Any, index: int, count: int) -> Any:
    if not isinstance(param.ty, relax.TensorType) or param.ty.shape is None:
        raise ModelImportError(f"input {index} ({param.name}) is no tensor of known rank")
    if str(param.ty.dtype) != "float32":
        raise ModelImportError(f"input {index} ({param.name}) has dtype {param.ty.dtype}, expected float32")
    shape = shape_of(param)
    return relax.Var("input" if count == 1 else f"input_{index}", relax.TensorType(shape, "float32"))


class _QdqRewriter(Rewriter):
    def __init__(self, module: tvm.IRModule, layer_names: list[str], tensor_names: list[str]) -> None:
        super().__init__(module)
        self._b = QdqBuilder(self.builder)
        self.tensors: dict[str, str] = {}
        """Variable of the new module that holds the result of a quantize -> the tensor in the file."""
        self._layers: dict[Any, str] = {}
        self._clips: dict[Any, tuple[Any, tuple[float, float]]] = {}
        calls = self.bound.values()
        contractions = [c for c in calls if op_name(c) in _CONTRACTIONS]
        self._names = list(layer_names) if len(layer_names) == len(contractions) else []
        quantizes = [c for c in calls if is_call(c, "relax.quantize")]
        known = len(tensor_names) == len(quantizes)
        self._tensor_of = dict(zip(quantizes, tensor_names, strict=True)) if known else {}

    def keeps(self, function: Any) -> bool:
        return isinstance(function, tirx.PrimFunc)

    def parameters(self) -> list[relax.Var]:
        params = self.main.params
        return [_input(param, index, len(params)) for index, param in enumerate(params)]

    def where(self, var: relax.Var, value: Expr) -> str:
        return self._b.where

    def begin(self) -> None:
        bindings = bindings_of(self.main)
        if any(isinstance(b, relax.MatchCast) or isinstance(b.value, relax.If) for b in bindings):
            raise ModelImportError("the program has control flow or sizes that are known at run time only")

    def bind(self, var: relax.Var, value: Expr) -> Any:
        if isinstance(value, relax.Call):
            return self._call(var, value)
        self._b.where = str(var.name)
        return self.read(value)

    def result(self, expr: Expr) -> Expr:
        self._b.where = "output"
        return self.read(expr)

    # ------------------------------------------------------------------ values

    def _value(self, expr: Expr) -> Any:
        return super().read(expr)

    def read(self, expr: Expr) -> Expr:
        """Returns the expression of a value; a dequantized value gets a new dequantize."""
        value = self._value(expr)
        if isinstance(value, _Dequantized):
            return self._emitted(value)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self.read(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            source = self.read(value.tuple_value)
            return (
                source.fields[value.index]
                if isinstance(source, relax.Tuple)
                else relax.TupleGetItem(source, value.index)
            )
        return value

    def _emitted(self, value: _Dequantized) -> Expr:
        hint = "weight" if is_constant(value.integers) else "dq"
        dtype = str(value.integers.ty.dtype)
        scale, zero_point = constant(value.scale, "float32"), constant(value.zero_point, dtype)
        return self._b.emit(relax.op.dequantize(value.integers, scale, zero_point, axis=value.axis), hint)

    def _layer(self, call: Any, name: str) -> str:
        """Returns the prefix of the names of a call's bindings."""
        if name in _CONTRACTIONS and self._names:
            return self._names.pop(0)
        if name in _INHERITS:
            arguments = call.args[1].fields if name == "relax.call_tir" else call.args
            known = [self._layers[a] for a in arguments if a in self._layers]
            if known:
                return known[0]
        return name.split(".")[-1]

    # ------------------------------------------------------------------ calls

    def _call(self, var: Any, call: Any) -> Any:
        name = op_name(call)
        self._b.where = self._layer(call, name)
        if name != "relax.dequantize":
            self._layers[var] = self._b.where
        special: dict[str, Callable[[Any], Any]] = {
            "relax.quantize": self._quantize,
            "relax.dequantize": self._dequantize,
            "relax.permute_dims": self._permute,
            "relax.matmul": self._matmul,
            "relax.add": self._add,
            "relax.call_tir": self._call_tir,
            "relax.reshape": self._reshape,
        }
        return special.get(name, self._plain)(call)

    def _plain(self, call: Any, arguments: list[Expr] | None = None) -> Expr:
        arguments = [self.read(a) for a in call.args] if arguments is None else arguments
        made = with_arguments(call, arguments)
        value = folded(made)
        if value is not None:
            return constant(value, str(value.dtype))
        return self._b.emit(made, op_name(call).split(".")[-1])

    def _params(self, call: Any) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for argument, dtype in zip(call.args[1:3], (np.float32, np.int64), strict=True):
            value = self._value(argument)
            if not is_constant(value):
                raise ModelImportError(
                    f"{self._b.where}: quantization parameters are computed at run time (dynamic quantization); "
                    "quantize statically, with calibration data"
                )
            array = constant_value(value).astype(dtype)
            found.append(array.reshape(()) if array.size == 1 else array)
        scale, zero_point = found
        return scale, np.broadcast_to(zero_point, scale.shape) if scale.ndim else zero_point

    def _quantize(self, call: Any) -> Expr:
        scale, zero_point = self._params(call)
        x, dtype = self._value(call.args[0]), str(call.attrs.out_dtype)
        if dtype not in ("int8", "uint8"):
            raise ModelImportError(f"{self._b.where} is quantized to {dtype}, expected int8 or uint8")
        if isinstance(x, _Dequantized) and x.is_kept_by(call, scale, zero_point):
            return x.integers
        axis = int(call.attrs.axis) if scale.ndim else -1
        arguments = (self.read(call.args[0]), constant(scale, "float32"), constant(zero_point, dtype))
        integers = self._b.emit(relax.op.quantize(*arguments, axis=axis, out_dtype=dtype))
        if call in self._tensor_of:
            self.tensors[integers.name] = self._tensor_of[call]
        return integers

    def _dequantize(self, call: Any) -> Any:
        scale, zero_point = self._params(call)
        integers = self.read(call.args[0])
        dtype, axis = str(integers.ty.dtype), int(call.attrs.axis)
        if is_constant(integers) and dtype in ("int32", "int16"):
            array = constant_value(integers)
            sizes = [1] * array.ndim
            if scale.ndim:
                sizes[axis] = -1
            real = (array - zero_point.reshape(sizes if scale.ndim else ())).astype(np.float32)
            return constant(real * scale.reshape(sizes if scale.ndim else ()), "float32")
        if dtype not in ("int8", "uint8"):
            raise ModelImportError(f"{self._b.where} dequantizes {dtype}, expected int8 or uint8")
        rank = len(shape_of(integers))
        return _Dequantized(integers, scale, zero_point, axis % max(rank, 1) if scale.ndim else -1)

    def _permute(self, call: Any) -> Any:
        x = self._value(call.args[0])
        if isinstance(x, _Dequantized) and is_constant(x.integers):
            array = constant_value(x.integers)
            order = list(range(array.ndim))[::-1] if call.attrs.axes is None else [int(a) for a in call.attrs.axes]
            moved = constant(array.transpose(order), str(array.dtype))
            return _Dequantized(moved, x.scale, x.zero_point, order.index(x.axis) if x.scale.ndim else -1)
        return self._plain(call)

    def _matmul(self, call: Any) -> Expr:
        """A constant weight (K, N) becomes permute_dims of a constant (N, K)."""
        weight = self._value(call.args[1])
        x = self.read(call.args[0])
        if isinstance(weight, _Dequantized) and is_constant(weight.integers):
            array = constant_value(weight.integers)
            if array.ndim == 2 and (weight.scale.ndim == 0 or weight.axis == 1):
                axis = 0 if weight.scale.ndim else -1
                rows = _Dequantized(constant(array.T, str(array.dtype)), weight.scale, weight.zero_point, axis)
                transposed = self._b.emit(relax.op.permute_dims(self._emitted(rows), [1, 0]), "weight_t")
                return self._b.emit(relax.op.matmul(x, transposed), "linear")
        return self._plain(call, [x, self.read(call.args[1])])

    def _add(self, call: Any) -> Expr:
        first, second = (self.read(a) for a in call.args)
        if is_constant(first) and not is_constant(second):
            first, second = second, first
        return self._plain(call, [first, second])

    def _reshape(self, call: Any) -> Expr:
        old, new = shape_of(call.args[0]), list(call.args[1].values) if hasattr(call.args[1], "values") else []
        if same_shape(old, [size_of(size) for size in new]):
            value = self._value(call.args[0])
            return value if isinstance(value, _Dequantized) else self.read(call.args[0])
        return self._plain(call)

    def _call_tir(self, call: Any) -> Expr:
        """TVM's ONNX importer writes a Clip as two element-wise functions: here they are R.clip."""
        arguments = [self.read(a) for a in call.args[1].fields]
        kind = _limit_of(self.module[call.args[0]])
        if kind is None or len(arguments) != 2 or not is_constant(arguments[1]):
            return self._b.emit(with_arguments(call, [call.args[0], relax.Tuple(arguments)]), "call")
        x, limit = arguments[0], float(constant_value(arguments[1]))
        bound = (limit, float("inf")) if kind == "max" else (float("-inf"), limit)
        inner = self._clips.get(x)
        if inner is not None:
            x, bound = inner[0], (max(inner[1][0], bound[0]), min(inner[1][1], bound[1]))
        if bound == (float("-inf"), float("inf")):
            return x
        y = self._b.emit(relax.op.nn.relu(x) if bound == (0.0, float("inf")) else relax.op.clip(x, *bound), "clip")
        self._clips[y] = (x, bound)
        return y


def _limit_of(function: Any) -> str | None:
    """Returns max or min if a function only stores that of its two arguments, else None."""
    statement = function.body
    while not isinstance(statement, tirx.BufferStore):
        statement = getattr(statement, "block", None) or getattr(statement, "body", None)
        if statement is None:
            return None
    if not isinstance(statement.value, (tirx.Max, tirx.Min)):
        return None
    operands = [statement.value.a, statement.value.b]
    if not all(hasattr(operand, "indices") for operand in operands) or len(operands[1].indices) > 0:
        return None
    return "max" if isinstance(statement.value, tirx.Max) else "min"
