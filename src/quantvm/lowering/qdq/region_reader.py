"""Reads the float program that the kernel of a region computes, and the operands of that program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from quantvm.numerics import qdq as qdq_numerics
from quantvm.numerics.float_operators import FUSED
from quantvm.numerics.qdq import (
    AccumulatorLeaf,
    ChannelLeaf,
    FloatProgram,
    Leaf,
    Quantization,
    ScalarLeaf,
    Step,
    TensorLeaf,
)
from quantvm.numerics.torch_engines import F32, QuantParams
from quantvm.qdq.expressions import constant_value, is_call, is_constant, quant_params, same_shape, shape_of

from .regions import Region


def unsigned(q: QuantParams) -> QuantParams:
    """Returns the parameters for the same values stored as uint8: int8 gets 128 added."""
    return q if q.dtype == "uint8" else QuantParams(q.scale, q.zero_point + 128, "uint8")


def limits_of(clip: Any) -> tuple[int, int]:
    """Returns the limits of a clip of integers, for their `unsigned` form."""
    low, high = (int(getattr(limit, "value", limit)) for limit in clip.args[1:3])
    shift = 128 if str(clip.ty.dtype) == "int8" else 0
    return low + shift, high + shift


class RegionReader:
    """Reads a region.

    Args:
        region: the region.
        bound: variable -> the expression that it is bound to.
        divides: whether quantization divides by the scale.
        ties_away: whether quantization rounds halves away from zero.

    Attributes:
        operands: variables from outside, in the order of the program's tensors.
    """

    def __init__(self, region: Region, bound: dict[Any, Any], divides: bool, ties_away: bool = False) -> None:
        self._region, self._bound, self._divides, self._ties_away = region, bound, divides, ties_away
        self._leaves: list[Any] = []
        self._steps: list[tuple[str, tuple[Any, ...], tuple[float, ...], Quantization | None]] = []
        self._known: dict[Any, Any] = {}
        self.operands: list[Any] = []
        if region.host is not None:
            self._leaves.append("accumulator")
            self._known[region.host] = ("leaf", 0)
        root = bound[region.root]
        self._output: Quantization | None = None
        if is_call(root, "relax.quantize") or str(root.ty.dtype) in ("uint8", "int8"):
            self._output, source = self._quantization(region.root)
            self._register(source)
        else:
            self._register(region.root)

    def program(self, params: Mapping[Any, QuantParams | None], multiplier_f32: F32 | None = None) -> FloatProgram:
        """Returns the program.

        Args:
            params: parameters of each operand; None for floats.
            multiplier_f32: real value of one unit of the host's accumulators, if the region has a host.
        """
        leaves = tuple(self._leaf(leaf, params, multiplier_f32) for leaf in self._leaves)

        def register(reference: tuple[str, int]) -> int:
            kind, index = reference
            return index if kind == "leaf" else len(leaves) + index

        steps = tuple(Step(op, tuple(map(register, args)), options, q) for op, args, options, q in self._steps)
        program = FloatProgram(leaves, steps, self._output)
        return _limited_by_last_steps(program)

    def _leaf(self, leaf: Any, params: Mapping[Any, QuantParams | None], multiplier_f32: F32 | None) -> Leaf:
        if isinstance(leaf, str):
            assert multiplier_f32 is not None
            return AccumulatorLeaf(multiplier_f32)
        if isinstance(leaf, relax.Var):
            shape, whole = shape_of(leaf), shape_of(self._bound[self._region.root])
            return TensorLeaf(params[leaf], gate=not same_shape(shape, whole))
        values = constant_value(leaf).astype(np.float32)
        return ScalarLeaf(float(values.reshape(()))) if values.size == 1 else ChannelLeaf(values.reshape(-1))

    def _quantization(self, var: Any) -> tuple[Quantization, Any]:
        """Returns the quantization of a quantize, perhaps followed by a clip, and its operand."""
        value, limits = self._bound[var], None
        if is_call(value, "relax.clip"):
            limits = limits_of(value)
            value = self._bound[value.args[0]]
        q = unsigned(quant_params(value))
        quantization = Quantization.full_range(q, divides=self._divides, ties_away=self._ties_away)
        return quantization if limits is None else quantization.limited(*limits), value.args[0]

    def _register(self, expr: Any) -> tuple[str, int]:
        """Returns the register that holds a value; operands and constants become leaves, members steps."""
        if isinstance(expr, relax.Var) and expr in self._known:
            return self._known[expr]
        if is_constant(expr) or expr not in self._region.members:
            self._leaves.append(expr)
            found = ("leaf", len(self._leaves) - 1)
            if isinstance(expr, relax.Var):
                self.operands.append(expr)
                self._known[expr] = found
            return found
        call = self._bound[expr]
        name = call.op.name
        quantization: Quantization | None = None
        options: tuple[float, ...] = ()
        args: tuple[tuple[str, int], ...]
        if name == "relax.dequantize":
            quantization, source = self._quantization(call.args[0])
            op, args = "requantize", (self._register(source),)
        else:
            operator = FUSED[name]
            op, args = operator.name, tuple(self._register(argument) for argument in call.args[: operator.arity])
            options = operator.options(call)
        self._steps.append((op, args, options, quantization))
        self._known[expr] = ("step", len(self._steps) - 1)
        return self._known[expr]


def _limited_by_last_steps(program: FloatProgram) -> FloatProgram:
    """Merges a ReLU or clip before the quantization into the quantization's range.

    Quantization is monotonic: clipping first gives the same integers as quantizing and then clipping to the quantized
    limits.
    """
    while program.output is not None and program.steps:
        last, at = program.steps[-1], len(program.leaves) + len(program.steps) - 1
        if last.op not in ("relu", "clip") or last.args != (at - 1,):
            return program
        limits = (0.0, np.inf) if last.op == "relu" else last.options
        low, high = (int(v) for v in qdq_numerics.quantize(np.array(limits, np.float32), program.output))
        program = replace(program, steps=program.steps[:-1], output=program.output.limited(low, high))
    return program
