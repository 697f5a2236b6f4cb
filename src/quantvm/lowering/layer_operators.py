"""Reads what each layer computes from the program's Relax QDQ form, so that NumPy rules can be tried on it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from quantvm.layer_rules import Operator, Window
from quantvm.lowering.torch.activation import options_of
from quantvm.lowering.torch.contractions import bias_of, weight_of
from quantvm.lowering.torch.pools import pool_window
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.float_operators import FUSED
from quantvm.qdq.attributes import channels_last_inputs, composite_name
from quantvm.qdq.bindings import definitions, resolved, results_of
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, is_call, op_name, quant_params, shape_of

from .channel_affine import merge_channel_affines
from .fuse_qdq import fuse_qdq

Arrays = Sequence[NDArray]


@dataclass(frozen=True)
class LayerOperator:
    """A layer's operator, and how its inputs follow from the program's inputs and the integers of other layers.

    Attributes:
        operator: what the layer computes.
        inputs_of: (the function's arguments) -> the operator's inputs, in PyTorch's logical order.
    """

    operator: Operator
    inputs_of: Callable[[Arrays], list[NDArray]]


def layer_operators(isolated: tvm.IRModule) -> list[LayerOperator | None]:
    """Returns the operator of every layer; None if it is not a known quantized operator.

    Args:
        isolated: (inputs, every layer's integers) -> every layer's integers, Relax in QDQ form.
    """
    module = fuse_qdq(merge_channel_affines(relax.transform.CanonicalizeBindings()(isolated)))
    reader = _Reader(module, channels_last_inputs(isolated))
    return [reader.layer(result) for result in reader.results]


class _Reader:
    """Reads layers by following the bindings of `main`."""

    def __init__(self, module: tvm.IRModule, channels_last: frozenset[int]) -> None:
        self._module, main = module, module["main"]
        self._index = {parameter: i for i, parameter in enumerate(main.params)}
        self._channels_last = channels_last
        self._bound = definitions(main)
        self.results = results_of(main)

    def _resolved(self, expr: Any) -> Any:
        return resolved(expr, self._bound)

    def layer(self, result: Any) -> LayerOperator | None:
        """Returns the operator that computes a result."""
        call = self._resolved(result)
        function = self._module[call.op] if isinstance(getattr(call, "op", None), tvm.ir.GlobalVar) else None
        if composite_name(function) is None:
            return None
        arguments = [argument for argument in call.args if not isinstance(argument, relax.ShapeExpr)]
        if not all(self._is_moved_argument(argument) for argument in arguments):
            return None
        composite = Composite(function)
        read = [self._read(arguments[index]) for index in _operands(composite)]
        found = _operator(composite, self._format([arguments[i] for i in _operands(composite) if arguments]))
        return None if found is None else LayerOperator(found, lambda given: [one(given) for one in read])

    def _read(self, argument: Any) -> Callable[[Arrays], NDArray]:
        return lambda given: self._value(argument, given)

    def _format(self, operands: list[Any]) -> dict[str, Any]:
        """Returns the memory formats and shapes on which PyTorch's formulas depend, as fields of `Operator`."""
        shapes = [[int(d) for d in operand.ty.shape] for operand in operands]
        has_one_order = [len(shape) == 4 and (shape[1] == 1 or shape[2:] == [1, 1]) for shape in shapes]
        is_marked = [self._is_only_channels_last(operand) for operand in operands]
        return {
            "channels_last": bool(operands) and all(map(operator.or_, is_marked, has_one_order)),
            "contiguous": all(one or not marked for marked, one in zip(is_marked, has_one_order, strict=True)),
            "formats": tuple(is_marked),
            "one_shape": all(shape == shapes[0] for shape in shapes),
        }

    def _is_only_channels_last(self, expr: Any) -> bool:
        """Whether PyTorch holds a tensor in channels-last order, and in no other."""
        source = self._resolved(expr)
        while is_call(source, "relax.nn.pad"):
            source = self._resolved(source.args[0])
        return len(expr.ty.shape) == 4 and self._index.get(source) in self._channels_last

    def _is_moved_argument(self, expr: Any) -> bool:
        """Whether a value is an argument of `main`, perhaps reshaped or permuted."""
        value = self._resolved(expr)
        if isinstance(value, relax.Var):
            return value in self._index
        name = op_name(value)
        return name in _MOVES and self._is_moved_argument(value.args[0])

    def _value(self, expr: Any, given: Arrays) -> NDArray:
        value = self._resolved(expr)
        if isinstance(value, relax.Var):
            return given[self._index[value]]
        return _MOVES[value.op.name](self._value(value.args[0], given), value)


def _padded(x: NDArray, call: Any) -> NDArray:
    widths = [int(w) for w in call.attrs.pad_width]
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    return np.pad(x, pairs, constant_values=int(call.attrs.pad_value))


def _sliced(x: NDArray, call: Any) -> NDArray:
    axes, begin, end, *stride = (
        [int(getattr(v, "value", v)) for v in part] for part in call.args[1:] if hasattr(part, "__len__")
    )
    at = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        at[axis] = slice(begin[i], end[i], stride[0][i] if stride else 1)
    return x[tuple(at)]


def _reshaped(x: NDArray, call: Any) -> NDArray:
    return np.ascontiguousarray(x).reshape([int(d) for d in call.ty.shape])


_MOVES: dict[str, Callable[[NDArray, Any], NDArray]] = {
    "relax.reshape": _reshaped,
    "relax.expand_dims": _reshaped,
    "relax.squeeze": _reshaped,
    "relax.permute_dims": lambda x, call: x.transpose([int(a) for a in call.attrs.axes]),
    "relax.astype": lambda x, call: x,
    "relax.nn.pad": _padded,
    "relax.strided_slice": _sliced,
}


# ------------------------------------------------------------------ composites

_CONSUMERS = {
    "conv2d": "relax.nn.conv2d", "linear": "relax.matmul", "add": "relax.add", "mul": "relax.multiply",
    "concat": "relax.concat", "max_pool2d": "relax.nn.max_pool2d", "avg_pool2d": "relax.nn.avg_pool2d",
    "adaptive_avg_pool2d": "relax.nn.adaptive_avg_pool2d", "mean": "relax.mean",
}  # fmt: skip


def _operands(composite: Composite) -> list[int]:
    """Returns which of the composite's parameters the operator reads, in the operator's order."""
    name = _CONSUMERS.get(composite.name)
    if name is None:
        return [0]
    return [index for index, _ in composite.inputs(composite.call(name))]


def _operator(composite: Composite, held: dict[str, Any]) -> Operator | None:
    kind = composite.name
    if kind in ("quantize", "quantize_affine"):
        affine = None
        if kind == "quantize_affine":
            first, second = (constant_value(composite.call(f"relax.{op}").args[1]) for op in ("multiply", "add"))
            affine = (first.reshape(-1), second.reshape(-1))
        return Operator(kind, (), composite.output, affine=affine)
    if kind in _CONSUMERS:
        call = composite.call(_CONSUMERS[kind])
        facts = {
            "inputs": tuple(q for _, q in composite.inputs(call)),
            "relu": composite.has("relax.nn.relu"),
            **held,
        }
        return Operator(kind, output=composite.output, **facts, **_details(composite, call))
    if kind in ("relu", "clip", *ACTIVATIONS):
        options: tuple[float, ...] = ()
        if kind == "clip":
            options = FUSED["relax.clip"].options(composite.call("relax.clip"))
        elif kind in ACTIVATIONS:
            options = options_of(composite)
        q = quant_params(composite.call("relax.dequantize"))
        return Operator(kind, (q,), composite.output, options=options, **held)
    return None


def _details(composite: Composite, call: Any) -> dict[str, Any]:
    """Returns the fields of `Operator` that only this kind of operator has."""
    kind, attrs = composite.name, call.attrs
    if kind in ("conv2d", "linear"):
        if kind == "linear":
            return {**_weight(composite), "rows": math.prod(int(d) for d in shape_of(call.args[0])[1:-1])}
        in_size = _pair(shape_of(call.args[0])[2:])
        return {**_weight(composite), "window": _conv_window(composite, attrs), "in_size": in_size}
    if kind == "concat":
        return {"axis": int(attrs.axis)}
    if kind in ("max_pool2d", "avg_pool2d"):
        return {"window": pool_window(call)}
    if kind == "adaptive_avg_pool2d":
        out_size = _pair(attrs.output_size)
        return {"out_size": out_size, "in_size": _pair(shape_of(call.args[0])[2:])}
    return {"axes": tuple(int(a) for a in attrs.axis), "keepdims": bool(attrs.keepdims)} if kind == "mean" else {}


def _weight(composite: Composite) -> dict[str, Any]:
    weight = weight_of(composite)
    return {
        "weight": weight.integers,
        "weight_scales": weight.scales,
        "weight_zero_points": weight.zero_points,
        "bias_f32": bias_of(composite),
    }


def _conv_window(composite: Composite, attrs: Any) -> Window:
    kernel_h, kernel_w = weight_of(composite).integers.shape[2:]
    return Window(
        (kernel_h, kernel_w), _pair(attrs.strides), _four(attrs.padding), _pair(attrs.dilation), int(attrs.groups)
    )


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _four(values: Any) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(v) for v in values)
    return top, left, bottom, right
