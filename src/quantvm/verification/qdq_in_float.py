"""Runs a Relax program in QDQ form literally, in float32: each operator by the equivalent float kernel of PyTorch.

Code that TVM generates for the same program is a hundred times slower, because its float convolutions are unscheduled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from torch.nn import functional
from tvm import relax

from quantvm.lowering.torch.pools import pool_window, reduced_axes
from quantvm.numerics import tflite as tflite_numerics
from quantvm.numerics.float_operators import RELAX_OPERATORS, FloatOperator
from quantvm.numerics.pool_geometry import PoolAxis
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.attributes import engine_of
from quantvm.qdq.bindings import bindings_of, definitions
from quantvm.qdq.expressions import constant_value, is_call, is_constant, quant_params


def unknown_ops(module: tvm.IRModule) -> list[str]:
    """Returns the operators of `main` that `QdqInFloat` does not know, sorted."""
    values = definitions(module["main"]).values()
    names = {name_of(value) for value in values if isinstance(value, tvm.ir.Call)}
    return sorted(name for name in names if name not in OPERATORS)


class QdqInFloat:
    """Computes a Relax program in QDQ form.

    Args:
        module: of one function, `main`, with no operator of `unknown_ops`.
        double: whether all operators between dequantize and quantize are in float64; dequantized values are always
            rounded to float32.

    Computes: dequantize: fl(scale * (q - zero_point)); quantize: clip(rne(fl(x / scale)) + zero_point), as Relax
        defines them; everything between in float32, convolutions and sums in the order of PyTorch's kernels. For a
        TFLite model, halves are rounded away from zero, and average pools, means, sums and requantizations follow
        `numerics.tflite`.
    """

    def __init__(self, module: tvm.IRModule, *, double: bool = False) -> None:
        self._main, self._double = module["main"], double
        engine = engine_of(module)
        self._ties_away = engine == "tflite"
        self._tflite = _rounded_by_tflite(self._main) if engine == "tflite" else {}
        self._constants: dict[Any, Tensor] = {}

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Returns the results of `main`."""
        values: dict[Any, Any] = {
            parameter: self._real(torch.from_numpy(np.ascontiguousarray(x)))
            for parameter, x in zip(self._main.params, inputs, strict=True)
        }
        with torch.inference_mode():
            for binding in bindings_of(self._main):
                known = self._constants.get(binding.var)
                if binding.var in self._tflite:
                    values[binding.var] = self._tflite[binding.var](values)
                    continue
                values[binding.var] = self._evaluated(binding.value, values) if known is None else known
                if known is None and _is_constant(binding.value, self._constants):
                    self._constants[binding.var] = values[binding.var]
            results = self._evaluated(self._main.body.body, values)
        results = results if isinstance(results, list) else [results]
        return [np.ascontiguousarray(result.numpy()) for result in results]

    def _evaluated(self, expr: Any, values: dict[Any, Any]) -> Any:
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return [self._evaluated(field, values) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._evaluated(expr.tuple_value, values)[expr.index]
        if isinstance(expr, tvm.ir.Call):
            arguments = [self._evaluated(argument, values) for argument in expr.args]
            if self._ties_away and is_call(expr, "relax.quantize"):
                return _quantize(expr, *arguments, ties_away=True)
            return self._real(OPERATORS[name_of(expr)](expr, *arguments))
        if is_constant(expr):
            return self._real(torch.from_numpy(constant_value(expr).copy()))
        return expr

    def _real(self, value: Any) -> Any:
        if self._double and isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value


def round_away(x_f64: Tensor) -> Tensor:
    """Rounds to integers, halves away from zero."""
    return torch.trunc(x_f64 + torch.copysign(torch.full_like(x_f64, 0.5), x_f64))


def _rounded_by_tflite(main: Any) -> dict[Any, _Tflite]:
    """Returns, for each quantize that TFLite rounds in its own way, how it is computed from integers."""
    bound = definitions(main)
    found: dict[Any, _Tflite] = {}
    for var, value in bound.items():
        if not is_call(value, "relax.quantize") or constant_value(value.args[1]).ndim:
            continue
        inner: Any = bound.get(value.args[0])
        is_average = is_call(inner, "relax.nn.avg_pool2d") or bool(reduced_axes(inner))
        source: Any = bound.get(inner.args[0]) if is_average else inner
        turns: list[Any] = []
        while is_average and is_call(source, "relax.permute_dims"):
            turns.insert(0, source)
            source = bound.get(source.args[0])
        if is_call(source, "relax.dequantize") and source.args[0] in bound:
            operator = inner if is_average else None
            found[var] = _Tflite(source.args[0], operator, quant_params(source), quant_params(value), tuple(turns))
    return found


@dataclass(frozen=True)
class _Tflite:
    """An average pool (with equal parameters), a mean or a sum; without an operator, a requantization of integers."""

    source: Any
    operator: Any
    q: QuantParams
    out_q: QuantParams
    turns: tuple[Any, ...] = ()

    def __call__(self, values: dict[Any, Any]) -> Tensor:
        x, operator, q, out_q = values[self.source], self.operator, self.q, self.out_q
        for turn in self.turns:
            x = _permuted(turn, x)
        if operator is None:
            y = tflite_numerics.requantize(x.numpy(), q, out_q)
        elif not is_call(operator, "relax.nn.avg_pool2d"):
            axes = reduced_axes(operator) or []
            total = x.to(torch.int64).sum(axes, keepdim=bool(operator.attrs.keepdims)).numpy()
            count = math.prod(x.shape[axis] for axis in axes)
            rule = tflite_numerics.mean if is_call(operator, "relax.mean") else tflite_numerics.total
            y = rule(total - count * q.zero_point, count, q, out_q)
        else:
            y = self._average(x)
        return torch.from_numpy(y.astype(out_q.dtype))

    def _average(self, x: Tensor) -> np.ndarray:
        rows, columns = _axes_of_pool(self.operator, x)
        ones = torch.ones(1, 1, rows.kernel, columns.kernel, dtype=torch.float64)
        maps = _reached(x.to(torch.float64), [rows, columns], 0.0)
        sums = functional.conv2d(maps.reshape(-1, 1, *maps.shape[2:]), ones, stride=[rows.stride, columns.stride])
        heights, widths = ([axis.inside(i).count for i in range(axis.out_size)] for axis in (rows, columns))
        counts = np.outer(heights, widths)
        total = sums.reshape(*x.shape[:2], *counts.shape).numpy()
        y = tflite_numerics.average(total, np.maximum(counts, 1))
        return np.clip(y, self.out_q.quant_min, self.out_q.quant_max)


def name_of(call: Any) -> str:
    """Returns the name of a call's operator."""
    return str(getattr(call.op, "name", call.op))


def _is_constant(value: Any, constants: dict[Any, Tensor]) -> bool:
    """Whether a call reads constants only, as the dequantize of a weight does."""
    return isinstance(value, tvm.ir.Call) and all(
        argument in constants if isinstance(argument, relax.Var) else hasattr(argument, "value")
        for argument in value.args
    )


def ints_of(values: Any) -> list[int]:
    """Returns constants of TVM as Python's integers."""
    return [int(getattr(v, "value", v)) for v in values]


def along_axis(vector: Tensor, call: Any, rank: int) -> Tensor:
    """Returns scales or zero points in a shape that broadcasts along the call's axis."""
    if vector.ndim == 0:
        return vector
    shape = [1] * rank
    shape[int(call.attrs.axis) % rank] = -1
    return vector.reshape(shape)


def _quantize(call: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *, ties_away: bool = False) -> Tensor:
    dtype = getattr(torch, str(call.attrs.out_dtype))
    limits = torch.iinfo(dtype)
    steps = x / along_axis(scale, call, x.ndim)
    steps = round_away(steps.double()).to(steps.dtype) if ties_away else torch.round(steps)
    steps = steps + along_axis(zero_point, call, x.ndim).to(torch.float32)
    return steps.clamp(limits.min, limits.max).to(dtype)


def _dequantize(call: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    centred = x.to(torch.int32) - along_axis(zero_point, call, x.ndim).to(torch.int32)
    return centred.to(torch.float32) * along_axis(scale, call, x.ndim)


def _padded(x: Tensor, widths: Sequence[int], value: float) -> Tensor:
    """Returns x with a border; widths are before and after of each dimension, the first one first."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    return functional.pad(x, [w for pair in reversed(pairs) for w in pair], value=value)


def padded_around(call: Any, x: Tensor, value: float) -> Tensor:
    """Returns images with the padding of a call around them."""
    top, left, bottom, right = ints_of(call.attrs.padding)
    return _padded(x, [0, 0, 0, 0, top, bottom, left, right], value) if top or left or bottom or right else x


def _conv2d(call: Any, x: Tensor, weight: Tensor) -> Tensor:
    attrs = call.attrs
    return functional.conv2d(
        padded_around(call, x, 0.0), weight, stride=ints_of(attrs.strides), dilation=ints_of(attrs.dilation),
        groups=int(attrs.groups),
    )  # fmt: skip


def _axes_of_pool(call: Any, x: Tensor) -> list[PoolAxis]:
    window = pool_window(call)
    return [window.axis(axis, x.shape[2 + axis]) for axis in (0, 1)]


def _max_pool2d(call: Any, x: Tensor) -> Tensor:
    axes = _axes_of_pool(call, x)
    stride, dilation = [axis.stride for axis in axes], [axis.dilation for axis in axes]
    real = x if x.is_floating_point() else x.float()
    y = functional.max_pool2d(_reached(real, axes, -torch.inf), [a.kernel for a in axes], stride, 0, dilation)
    return y.to(x.dtype)


def avg_pool2d(call: Any, x: Tensor) -> Tensor:
    """Returns the averages of a pool's windows."""
    window, (rows, columns) = pool_window(call), _axes_of_pool(call, x)
    size, stride, padding = list(window.kernel), list(window.stride), list(window.padding[:2])
    fits = window.padding[:2] == window.padding[2:] and window.dilation == (1, 1)
    if fits and all(2 * pad <= k for pad, k in zip(padding, size, strict=True)):
        return functional.avg_pool2d(x, size, stride, padding, window.ceil_mode, window.count_include_pad)
    maps = _reached(x, [rows, columns], 0.0)
    ones = torch.ones(1, 1, *size, dtype=x.dtype)
    sums = functional.conv2d(maps.reshape(-1, 1, *maps.shape[2:]), ones, stride=stride, dilation=window.dilation)
    divisors = pool_counts(call, x).to(x.dtype)
    return sums.reshape(*x.shape[:2], *divisors.shape) / divisors


def pool_counts(call: Any, x: Tensor) -> Tensor:
    """Returns (H, W) int64: by how many pixels an average pool divides the sum of each window, at least 1."""
    include = pool_window(call).count_include_pad
    heights, widths = (
        torch.tensor([axis.counted(i) if include else axis.inside(i).count for i in range(axis.out_size)])
        for axis in _axes_of_pool(call, x)
    )
    return torch.outer(heights, widths).clamp(min=1)


def _reached(x: Tensor, axes: Sequence[PoolAxis], value: float) -> Tensor:
    """Returns x with a border as wide as a pool's windows reach; in ceil mode that is more than the padding."""
    widths = [0, 0, 0, 0]
    for axis in axes:
        end = (axis.out_size - 1) * axis.stride + axis.span
        widths += [axis.before, max(end - axis.before - axis.size, 0)]
    return _padded(x, widths, value)


def _sliced(call: Any, x: Tensor, *bounds: Any) -> Tensor:
    axes, begin, end, *stride = (ints_of(part) for part in call.args[1:])
    at = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        at[axis] = slice(begin[i], end[i], stride[0][i] if stride else 1)
    return x[tuple(at)]


def axes_of(call: Any, x: Tensor) -> list[int]:
    """Returns the axes of a reduction; all if the call names none."""
    return list(range(x.ndim)) if call.attrs.axis is None else ints_of(call.attrs.axis)


def _mean(call: Any, x: Tensor) -> Tensor:
    return x.mean(axes_of(call, x), keepdim=bool(call.attrs.keepdims))


def _layer_norm(call: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    axes = sorted(axis % x.ndim for axis in ints_of(call.attrs.axes))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + float(call.attrs.epsilon))
    shape = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    y = y * gamma.reshape(shape) if bool(call.attrs.scale) else y
    return y + beta.reshape(shape) if bool(call.attrs.center) else y


def _attention(call: Any, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
    """Each input is (N, positions, heads, size); PyTorch's function has heads first."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scale = None if call.attrs.scale is None else float(call.attrs.scale)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[0] if bias else None, scale=scale)
    return y.transpose(1, 2)


def _permuted(call: Any, x: Tensor) -> Tensor:
    return x.permute(list(range(x.ndim))[::-1] if call.attrs.axes is None else ints_of(call.attrs.axes))


def _same_shape(call: Any, x: Tensor, *rest: Any) -> Tensor:
    return x.reshape([int(d) for d in call.ty.shape])


def _taken(call: Any, x: Tensor, index: Tensor) -> Tensor:
    axis = int(call.attrs.axis)
    return x.index_select(axis, index.reshape(-1).long()).reshape([int(d) for d in call.ty.shape])


def _element_wise(operator: FloatOperator) -> Callable[..., Tensor]:
    """Returns PyTorch's own function of an element-wise operator."""
    function = attrgetter(operator.torch or operator.name)(torch)

    def compute(call: Any, *operands: Any) -> Tensor:
        return function(*operands[: operator.arity], *operator.options(call), **operator.torch_options)

    return compute


OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: _element_wise(operator) for name, operator in RELAX_OPERATORS.items()},
    "relax.quantize": _quantize,
    "relax.dequantize": _dequantize,
    "relax.nn.conv2d": _conv2d,
    "relax.matmul": lambda call, x, y: x @ y,
    "relax.permute_dims": _permuted,
    "relax.astype": lambda call, x: x.to(getattr(torch, str(call.attrs.dtype))),
    "relax.nn.softmax": lambda call, x: torch.softmax(x, int(call.attrs.axis)),
    "relax.greater": lambda call, x, y: x > y,
    "relax.less": lambda call, x, y: x < y,
    "relax.equal": lambda call, x, y: x == y,
    "relax.logical_not": lambda call, x: torch.logical_not(x),
    "relax.where": lambda call, condition, x, y: torch.where(condition, x, y),
    "relax.take": _taken,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.attention": _attention,
    "relax.broadcast_to": lambda call, x, *rest: x.expand([int(d) for d in call.ty.shape]),
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.avg_pool2d": avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": lambda call, x: functional.adaptive_avg_pool2d(x, ints_of(call.attrs.output_size)),
    "relax.mean": _mean,
    "relax.sum": lambda call, x: x.sum(axes_of(call, x), keepdim=bool(call.attrs.keepdims)),
    "relax.concat": lambda call, parts: torch.cat(parts, int(call.attrs.axis)),
    "relax.reshape": _same_shape,
    "relax.expand_dims": _same_shape,
    "relax.squeeze": _same_shape,
    "relax.strided_slice": _sliced,
    "relax.nn.pad": lambda call, x: _padded(x, ints_of(call.attrs.pad_width), float(call.attrs.pad_value)),
}
