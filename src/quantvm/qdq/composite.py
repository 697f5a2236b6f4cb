"""Reads the body of a composite function: its operators, constants, quantization parameters and inputs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from quantvm.numerics.torch_engines import QuantParams

Expr = Any


def constant_value(expr: Expr) -> np.ndarray:
    """Returns the value of a Relax constant."""
    return expr.value.numpy()


def static_shape(expr: Expr) -> list[Any]:
    """Returns the shape: Python ints, and symbolic expressions where a dimension is dynamic."""
    return [int(d) if hasattr(d, "value") else d for d in expr.ty.shape]


class Composite:
    """One quantized operator: a composite function made by `fuse_qdq`."""

    def __init__(self, function: relax.Function) -> None:
        self.name = str(function.attrs["Composite"]).removeprefix("quantvm.")
        self.params = list(function.params)
        self._values: dict[Any, Expr] = {}
        self._calls: dict[str, list[Expr]] = {}
        for block in function.body.blocks:
            for binding in block.bindings:
                self._values[binding.var] = binding.value
                if hasattr(binding.value, "op") and hasattr(binding.value.op, "name"):
                    self._calls.setdefault(binding.value.op.name, []).append(binding.value)
        self.result = self.resolve(function.body.body)

    @property
    def layer(self) -> str:
        """What the names of the inner variables begin with, which the frontend made of the module's path; or empty."""
        inner = list(self._values)[:-1]  # fusion renames the result
        words = [variable.name.split("_")[:-1] for variable in inner]
        return "_".join(w[0] for w in itertools.takewhile(lambda w: len(set(w)) == 1, zip(*words, strict=False)))

    def resolve(self, expr: Expr) -> Expr:
        """Follows variables to the expression that they are bound to."""
        while expr in self._values:
            expr = self._values[expr]
        return expr

    def calls(self, op: str) -> list[Expr]:
        """Returns the calls of an operator, in order."""
        return self._calls.get(op, [])

    def call(self, op: str) -> Expr:
        """Returns the only call of an operator."""
        (only,) = self.calls(op)
        return only

    def has(self, op: str) -> bool:
        """Returns whether the operator occurs."""
        return op in self._calls

    @property
    def output(self) -> QuantParams:
        """Parameters of the quantized result."""
        return quant_params(self.call("relax.quantize"))

    def inputs(self, consumer: Expr) -> list[tuple[int, QuantParams]]:
        """Returns (parameter index, quantization) of each dequantized argument of `consumer`, in argument order."""
        arguments = list(consumer.args)
        if len(arguments) == 1 and hasattr(self.resolve(arguments[0]), "fields"):
            arguments = list(self.resolve(arguments[0]).fields)
        found = []
        for argument in arguments:
            value = self.resolve(argument)
            if is_call(value, "relax.dequantize") and not isinstance(value.args[0], GenericConst):
                found.append((self.params.index(value.args[0]), quant_params(value)))
        return found


def is_call(expr: Expr, op: str) -> bool:
    """Returns whether `expr` calls the operator."""
    return getattr(getattr(expr, "op", None), "name", None) == op


def is_per_tensor(call: Expr) -> bool:
    """Returns whether a quantize or dequantize has one scale, which is known."""
    return all(isinstance(argument, GenericConst) and not constant_value(argument).ndim for argument in call.args[1:3])


def quant_params(call: Expr) -> QuantParams:
    """Returns the per-tensor parameters of a quantize or dequantize call."""
    dtype = call.attrs.out_dtype if is_call(call, "relax.quantize") else call.args[0].ty.dtype
    scale, zero_point = (constant_value(argument) for argument in call.args[1:3])
    return QuantParams(float(scale), int(zero_point), str(dtype))  # type: ignore[arg-type]
