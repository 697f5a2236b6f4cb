"""Rewrites TFLite's programs from channels-last order (N, H, W, C) to PyTorch's logical order (N, C, H, W).

Inputs and outputs of the function keep their order: each image is transposed after the input and before the output. In
between, convolutions, pools, sums over channels or space and element-wise operators work on
(N, C, H, W); others get their inputs transposed back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import constant, shape_of
from quantvm.numerics.float_operators import RELAX_OPERATORS
from quantvm.qdq.expressions import Expr, constant_value, is_call, is_constant, op_name
from quantvm.qdq.rewriting import Rewriter, with_arguments

_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}
"""Axis of (N, H, W, C) -> the same axis in (N, C, H, W)."""
_ELEMENT_WISE = frozenset((*RELAX_OPERATORS, "relax.astype", "relax.quantize", "relax.dequantize"))
_KEEPS_PARAMETERS = frozenset(f"relax.{name}" for name in ("clip", "reshape", "nn.max_pool2d", "nn.pad", "astype"))


def channels_first(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with a `main` that computes in (N, C, H, W) order.

    Raises:
        ModelImportError: control flow, or a convolution whose weight is computed at run time.
    """
    return _Rewriter(module).go()


class _Rewriter(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._is_first: set[Expr] = set()
        self._quantizes: dict[Any, Any] = {}
        self._other: dict[Expr, Expr] = {}

    def begin(self) -> None:
        for param in self.main.params:
            if _rank(param) == 4:
                self.values[param] = self._first(self.values[param])

    def result(self, expr: Expr) -> Expr:
        return self._last_of(expr)

    def _last_of(self, expr: Expr) -> Expr:
        value = self.read(expr)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._last(self.read(field)) for field in value.fields])
        return self._last(value)

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        if isinstance(value, relax.Call):
            made = self._call(value)
            if is_call(value, "relax.quantize"):
                self._quantizes[var] = value
            elif op_name(value) in _KEEPS_PARAMETERS and value.args[0] in self._quantizes:
                self._quantizes[var] = self._quantizes[value.args[0]]
            return made
        if isinstance(value, (relax.Tuple, tvm.ir.Var, GenericConst)):
            return self.read(value)
        if isinstance(value, relax.TupleGetItem):
            source = self.read(value.tuple_value)
            return self.builder.emit(relax.TupleGetItem(source, value.index))
        raise ModelImportError("the program has control flow or sizes that are known at run time only")

    # ------------------------------------------------------------------ order of one value

    def _emit_first(self, expr: Expr) -> Expr:
        var = self.builder.emit(expr)
        self._is_first.add(var)
        return var

    def _first(self, value: Expr) -> Expr:
        """Returns a four-dimensional value in (N, C, H, W)."""
        if value in self._is_first:
            return value
        if is_constant(value):
            return constant(constant_value(value).transpose(_TO_FIRST), str(value.ty.dtype))
        if value not in self._other:
            self._other[value] = self._emit_first(relax.op.permute_dims(value, _TO_FIRST))
        return self._other[value]

    def _last(self, value: Expr) -> Expr:
        """Returns a value in the file's own order."""
        if value not in self._is_first:
            return value
        if value not in self._other:
            self._other[value] = self.builder.emit(relax.op.permute_dims(value, _TO_LAST))
        return self._other[value]

    # ------------------------------------------------------------------ operators

    def _call(self, call: Any) -> Expr:
        name = call.op.name
        arguments = [self.read(a) for a in call.args]
        special: dict[str, Callable[[Any, list[Expr]], Expr | None]] = {
            "relax.nn.conv2d": self._conv2d,
            "relax.nn.conv2d_transpose": self._conv2d_transpose,
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.mean": self._mean,
            "relax.concat": self._concat,
            "relax.nn.pad": self._pad,
            "relax.reshape": self._reshape,
            "relax.astype": self._integer_average,
        }
        made = special[name](call, arguments) if name in special else None
        if made is None and name in _ELEMENT_WISE:
            made = self._element_wise(call, arguments)
        if made is not None:
            return made
        plain = [self._last_of(a) if isinstance(a, relax.Tuple) else self._last(a) for a in arguments]
        return self.builder.emit(with_arguments(call, plain))

    def _element_wise(self, call: Any, arguments: list[Expr]) -> Expr | None:
        if len(getattr(call.ty, "shape", None) or ()) != 4:
            return None
        if call.op.name in ("relax.quantize", "relax.dequantize"):
            if constant_value(call.args[1]).size > 1:
                return None
            arguments = [self._first(arguments[0]), *arguments[1:]]
        else:
            arguments = [self._aligned(a) for a in arguments]
        return self._emit_first(with_arguments(call, arguments))

    def _aligned(self, value: Expr) -> Expr:
        """Returns an operand of an element-wise operator, reordered so that it broadcasts along the same dimensions."""
        rank = _rank(value)
        if rank == 4:
            return self._first(value)
        if rank == 1 and is_constant(value):
            return constant(constant_value(value).reshape(1, -1, 1, 1), str(value.ty.dtype))
        if rank == 1:
            return self.builder.emit(relax.op.reshape(value, (1, -1, 1, 1)))
        if rank in (2, 3):
            shape = [1] * (4 - rank) + shape_of(value)
            if is_constant(value):
                return self._first(constant(constant_value(value).reshape(shape), str(value.ty.dtype)))
            return self._first(self.builder.emit(relax.op.reshape(value, shape)))
        return value

    def _conv2d(self, call: Any, arguments: list[Expr]) -> Expr:
        if str(call.attrs.data_layout) != "NHWC":
            raise ModelImportError(f"a convolution in layout {call.attrs.data_layout}, expected NHWC")
        y = relax.op.nn.conv2d(
            self._first(arguments[0]), self._weight(call), strides=list(call.attrs.strides),
            padding=list(call.attrs.padding), dilation=list(call.attrs.dilation), groups=int(call.attrs.groups),
            data_layout="NCHW", kernel_layout="OIHW", out_dtype="float32",
        )  # fmt: skip
        return self._emit_first(y)

    def _conv2d_transpose(self, call: Any, arguments: list[Expr]) -> Expr:
        attrs = call.attrs
        if str(attrs.data_layout) != "NHWC":
            raise ModelImportError(f"a transposed convolution in layout {attrs.data_layout}, expected NHWC")
        y = relax.op.nn.conv2d_transpose(
            self._first(arguments[0]), self._weight(call, "IOHW"), strides=list(attrs.strides),
            padding=list(attrs.padding), output_padding=list(attrs.output_padding), dilation=list(attrs.dilation),
            groups=int(attrs.groups), data_layout="NCHW", kernel_layout="IOHW", out_dtype="float32",
        )  # fmt: skip
        return self._emit_first(y)

    def _weight(self, call: Any, letters: str = "OIHW") -> Expr:
        """Returns the weight with the dimensions `letters`; a quantized one as a dequantize of stored integers."""
        layout = str(call.attrs.kernel_layout)
        order, outputs = [layout.index(letter) for letter in letters], letters.index("O")
        source = self.bound.get(call.args[1], call.args[1])
        shape = shape_of(call.args[1])
        if is_call(source, "relax.reshape"):
            source = self.bound.get(source.args[0], source.args[0])
        if is_constant(source):
            return constant(constant_value(source).reshape(shape).transpose(order), "float32")
        if not is_call(source, "relax.dequantize") or not is_constant(source.args[0]):
            raise ModelImportError("a convolution whose weight is computed at run time, expected a constant")
        integers, scale, zero_point = (constant_value(argument) for argument in source.args)
        if scale.size > 1 and scale.size != shape[order[outputs]]:
            expected = shape[order[outputs]]
            raise ModelImportError(f"a weight of shape {shape} with {scale.size} scales, expected {expected}")
        moved = constant(integers.reshape(shape).transpose(order), str(integers.dtype))
        axis = outputs if scale.size > 1 else -1
        if scale.size > 1:
            zero_point = np.broadcast_to(zero_point, scale.shape)
        scale, zero_point = (v if v.size > 1 else v.reshape(()) for v in (scale, zero_point))
        parameters = constant(scale, "float32"), constant(zero_point, str(integers.dtype))
        return self.builder.emit(relax.op.dequantize(moved, *parameters, axis=axis))

    def _pool(self, call: Any, arguments: list[Expr]) -> Expr | None:
        attrs = call.attrs
        if str(attrs.layout) != "NHWC":
            return None
        return self._emit_first(self._pool_of(call.op.name, self._first(arguments[0]), attrs))

    def _pool_of(self, name: str, x: Expr, attrs: Any) -> Expr:
        op = relax.op.nn.max_pool2d if name == "relax.nn.max_pool2d" else relax.op.nn.avg_pool2d
        return op(
            x, pool_size=list(attrs.pool_size), strides=list(attrs.strides), padding=list(attrs.padding),
            dilation=list(attrs.dilation), ceil_mode=bool(attrs.ceil_mode),
            count_include_pad=bool(attrs.count_include_pad), layout="NCHW",
        )  # fmt: skip

    def _integer_average(self, call: Any, arguments: list[Expr]) -> Expr | None:
        """Averages in float, where TVM averages a quantized tensor in int32 and truncates."""
        pool: Any = self.bound.get(call.args[0])
        if not is_call(pool, "relax.nn.avg_pool2d"):
            return None
        widened: Any = self.bound.get(pool.args[0])
        integers: Any = widened.args[0] if is_call(widened, "relax.astype") else None
        if integers not in self._quantizes:
            raise ModelImportError("an average pool of integers whose quantization is not known")
        scale, zero_point = self._quantizes[integers].args[1:3]
        x = self._emit_first(relax.op.dequantize(self._first(self.values[integers]), scale, zero_point))
        mean = self._emit_first(self._pool_of("relax.nn.avg_pool2d", x, pool.attrs))
        return self._emit_first(relax.op.quantize(mean, scale, zero_point, out_dtype=str(integers.ty.dtype)))

    def _mean(self, call: Any, arguments: list[Expr]) -> Expr | None:
        x = arguments[0]
        axes = [int(a) % 4 for a in call.attrs.axis] if call.attrs.axis is not None else None
        keeps = bool(call.attrs.keepdims)
        if _rank(x) != 4 or axes is None or not (keeps or sorted(axes) == [1, 2]):
            return None
        y = relax.op.mean(self._first(x), sorted(_AXIS[a] for a in axes), keeps)
        return self._emit_first(y) if keeps else self.builder.emit(y)

    def _concat(self, call: Any, arguments: list[Expr]) -> Expr | None:
        fields = [self.read(field) for field in arguments[0].fields]
        if any(_rank(field) != 4 for field in fields):
            return None
        axis = _AXIS[int(call.attrs.axis) % 4]
        return self._emit_first(relax.op.concat([self._first(field) for field in fields], axis))

    def _pad(self, call: Any, arguments: list[Expr]) -> Expr | None:
        if _rank(arguments[0]) != 4:
            return None
        widths = [int(w) for w in call.attrs.pad_width]
        moved = [width for axis in _TO_FIRST for width in widths[2 * axis : 2 * axis + 2]]
        attrs = call.attrs
        return self._emit_first(
            relax.op.nn.pad(self._first(arguments[0]), moved, pad_value=float(attrs.pad_value), pad_mode=attrs.pad_mode)
        )

    def _reshape(self, call: Any, arguments: list[Expr]) -> Expr | None:
        """Reshapes an image of a single pixel directly, since its order is the same either way."""
        x = arguments[0]
        if x in self._is_first and shape_of(x)[2:] == [1, 1] and len(shape_of(call)) != 4:
            return self.builder.emit(relax.op.reshape(x, call.args[1]))
        return None


def _rank(value: Expr) -> int:
    ty = getattr(value, "ty", None)
    return int(ty.ndim) if isinstance(ty, relax.TensorType) else -1
