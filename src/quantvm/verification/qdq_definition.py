"""A program in QDQ form computed by its definition: with exact integer sums, or without any rounding to steps.

`ExactQdq` computes what docs/numerics.md promises for numerics=qdq, with PyTorch's operators in place of our kernels: a
second implementation that shares no code with the lowering. `Unrounded` is the same network with activations clamped to
their range but not rounded: its distance from the quantized network is what quantizing moved.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from torch.nn import functional
from tvm import relax

from quantvm.numerics.float_operators import RELAX_OPERATORS
from quantvm.qdq.bindings import bindings_of

from .qdq_in_float import (
    OPERATORS,
    QdqInFloat,
    along_axis,
    avg_pool2d,
    axes_of,
    ints_of,
    name_of,
    padded_around,
    pool_counts,
    round_away,
)

ROUNDED_ALONE = frozenset(name for name, operator in RELAX_OPERATORS.items() if operator.is_exact) | frozenset(
    f"relax.{name}"
    for name in (
        "concat", "reshape", "expand_dims", "squeeze", "strided_slice", "nn.pad", "permute_dims", "broadcast_to",
        "nn.max_pool2d", "astype", "quantize", "dequantize",
    )
)  # fmt: skip
"""Operators that compute one IEEE operation per element, or move elements: equal in every implementation."""

_MOVES = frozenset(
    f"relax.{name}" for name in ("reshape", "expand_dims", "squeeze", "strided_slice", "permute_dims", "nn.max_pool2d")
)
"""Operators that can also work on the integers. An average of anything else is a sum of floats, in any order."""


class _Freeing(QdqInFloat):
    """Frees every tensor after its last use."""

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Returns the results of `main`."""
        bindings = bindings_of(self._main)
        last: dict[Any, int] = {}
        for i, binding in enumerate(bindings):
            for used in relax.analysis.free_vars(binding.value):
                last[used] = i
        for used in relax.analysis.free_vars(self._main.body.body):
            last[used] = len(bindings)
        for i, binding in enumerate(bindings):
            if binding.var in self._tflite:
                source = self._tflite[binding.var].source
                last[source] = max(last.get(source, i), i)
        ends = collections.defaultdict(list)
        for var, i in last.items():
            ends[i].append(var)
        values: dict[Any, Any] = {
            parameter: self._real(torch.from_numpy(np.ascontiguousarray(x)))
            for parameter, x in zip(self._main.params, inputs, strict=True)
        }
        with torch.inference_mode():
            for i, binding in enumerate(bindings):
                rounded = self._tflite.get(binding.var)
                values[binding.var] = self._evaluated(binding.value, values) if rounded is None else rounded(values)
                for var in ends[i]:
                    values.pop(var, None)
            results = self._evaluated(self._main.body.body, values)
        results = results if isinstance(results, list) else [results]
        return [np.ascontiguousarray(_plain(result).numpy()) for result in results]


class _Dequantized:
    """Real values with the integers that stand for them: values = fl(scale * centred)."""

    def __init__(self, real: Tensor, centred_f64: Tensor, scale: Tensor) -> None:
        self.real, self.centred_f64, self.scale = real, centred_f64, scale


class ExactQdq(_Freeing):
    """Computes what numerics=qdq defines.

    Args:
        module: of one function, `main`, with no operator of `unknown_ops`.
        divides: whether quantize divides by the scale, as in ONNX, or multiplies by its reciprocal, as in PT2E.

    Attributes:
        inexact: executed operators that are no IEEE operation, so that other implementations differ in last bits.
    """

    def __init__(self, module: tvm.IRModule, *, divides: bool) -> None:
        super().__init__(module)
        self._divides = divides
        self.inexact: set[str] = set()

    def _evaluated(self, expr: Any, values: dict[Any, Any]) -> Any:
        if not isinstance(expr, tvm.ir.Call):
            return super()._evaluated(expr, values)
        name = name_of(expr)
        arguments = [self._evaluated(argument, values) for argument in expr.args]
        special = getattr(self, "_" + name.removeprefix("relax.").replace(".", "_"), None)
        result = None if special is None else special(expr, *arguments)
        if result is not None:
            return result
        if name not in ROUNDED_ALONE:
            self.inexact.add(name)
        plain = [_plain(argument) for argument in arguments]
        result = OPERATORS[name](expr, *plain)
        source = arguments[0] if arguments else None
        if name in _MOVES and isinstance(source, _Dequantized) and not (source.scale.ndim and name != _PERMUTE):
            scale = OPERATORS[name](expr, source.scale) if source.scale.ndim else source.scale
            return _Dequantized(result, OPERATORS[name](expr, source.centred_f64), scale)
        return result

    def _quantize(self, call: Any, x: Any, scale: Tensor, zero_point: Tensor) -> Tensor:
        x, dtype = _plain(x), getattr(torch, str(call.attrs.out_dtype))
        if self._divides:
            steps = x / along_axis(scale, call, x.ndim)
        else:
            inverse = torch.from_numpy(np.asarray(1.0 / scale.numpy().astype(np.float64)).astype(np.float32))
            steps = x * along_axis(inverse, call, x.ndim)
        limits = torch.iinfo(dtype)
        whole = (round_away if self._ties_away else torch.round)(steps.double())
        whole = whole + along_axis(zero_point, call, x.ndim).double()
        return whole.clamp(limits.min, limits.max).to(dtype)

    def _dequantize(self, call: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Any:
        along = along_axis(scale, call, x.ndim)
        centred = x.to(torch.int64) - along_axis(zero_point, call, x.ndim).to(torch.int64)
        return _Dequantized(centred.to(torch.float32) * along, centred.double(), along)

    def _nn_conv2d(self, call: Any, x: Any, weight: Any) -> Tensor | None:
        if not (isinstance(x, _Dequantized) and isinstance(weight, _Dequantized) and not x.scale.ndim):
            return None
        attrs = call.attrs
        acc = functional.conv2d(
            padded_around(call, x.centred_f64, 0.0), weight.centred_f64, stride=ints_of(attrs.strides),
            dilation=ints_of(attrs.dilation), groups=int(attrs.groups),
        )  # fmt: skip
        multiplier = x.scale * weight.scale
        return acc.float() * (multiplier.reshape(1, -1, 1, 1) if multiplier.ndim else multiplier)

    def _matmul(self, call: Any, x: Any, weight: Any) -> Tensor | None:
        if not (isinstance(x, _Dequantized) and isinstance(weight, _Dequantized) and not x.scale.ndim):
            return None
        if weight.scale.ndim and weight.scale.numel() != weight.scale.shape[-1]:
            return None
        return (x.centred_f64 @ weight.centred_f64).float() * (x.scale * weight.scale)

    def _mean(self, call: Any, x: Any) -> Tensor | None:
        axes = [axis % x.real.ndim for axis in axes_of(call, x.real)] if isinstance(x, _Dequantized) else []
        if axes != [2, 3] or x.real.ndim != 4 or x.scale.ndim:
            return None
        total = x.centred_f64.sum(axes, keepdim=bool(call.attrs.keepdims))
        return total.float() * x.scale / torch.tensor(float(x.real.shape[2] * x.real.shape[3]))

    def _nn_adaptive_avg_pool2d(self, call: Any, x: Any) -> Tensor | None:
        if not isinstance(x, _Dequantized) or x.scale.ndim:
            return None
        sizes = ints_of(call.attrs.output_size)
        sizes = sizes * 2 if len(sizes) == 1 else sizes
        rows, columns = (_window_sizes(n, m) for n, m in zip(x.real.shape[2:], sizes, strict=True))
        counts = rows[:, None] * columns[None, :]
        total = torch.round(functional.adaptive_avg_pool2d(x.centred_f64, sizes) * counts)
        return total.float() * x.scale / counts.float()

    def _nn_avg_pool2d(self, call: Any, x: Any) -> Tensor | None:
        if not isinstance(x, _Dequantized) or x.scale.ndim:
            return None
        counts = pool_counts(call, x.real).double()
        total = torch.round(avg_pool2d(call, x.centred_f64) * counts)
        return total.float() * x.scale / counts.float()


def _window_sizes(size: int, windows: int) -> Tensor:
    """Returns how many pixels each window of an adaptive pool has."""
    ends = [-(-(i + 1) * size // windows) for i in range(windows)]
    return torch.tensor([end - i * size // windows for i, end in enumerate(ends)], dtype=torch.float64)


_PERMUTE = "relax.permute_dims"


class Unrounded(_Freeing):
    """The network with activations clamped to their quantization's range, but not rounded."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._tflite = {}  # nothing is rounded

    def _evaluated(self, expr: Any, values: dict[Any, Any]) -> Any:
        if isinstance(expr, tvm.ir.Call):
            name = name_of(expr)
            if name == "relax.quantize":
                x, scale, zero_point = (self._evaluated(argument, values) for argument in expr.args)
                limits = torch.iinfo(getattr(torch, str(expr.attrs.out_dtype)))
                steps = x / along_axis(scale, expr, x.ndim) + along_axis(zero_point, expr, x.ndim)
                return steps.clamp(limits.min, limits.max)
            if name == "relax.dequantize":
                x, scale, zero_point = (self._evaluated(argument, values) for argument in expr.args)
                return (x.float() - along_axis(zero_point, expr, x.ndim)) * along_axis(scale, expr, x.ndim)
            if name == "relax.astype":
                (x,) = (self._evaluated(argument, values) for argument in expr.args)
                return x.float()
        return super()._evaluated(expr, values)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.real if isinstance(value, _Dequantized) else value
