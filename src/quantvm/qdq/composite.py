"""Reads the body of a composite function: its operators, constants, quantization parameters and inputs."""

from __future__ import annotations

import itertools
from typing import Any

from tvm import relax

from quantvm.numerics.torch_engines import QuantParams

from .attributes import composite_name
from .bindings import definitions, resolved
from .expressions import Expr, is_call, is_constant, op_name, quant_params


class Composite:
    """One quantized operator: a composite function made by `fuse_qdq`."""

    def __init__(self, function: relax.Function) -> None:
        self.name = composite_name(function) or ""
        self.params = list(function.params)
        self._values: dict[Any, Expr] = {}
        self._calls: dict[str, list[Expr]] = {}
        for var, value in definitions(function).items():
            self._values[var] = value
            if op_name(value):
                self._calls.setdefault(op_name(value), []).append(value)
        self.result = self.resolve(function.body.body)

    @property
    def layer(self) -> str:
        """The common prefix of the inner variables' names, which the frontend made from the module's path; or empty."""
        inner = list(self._values)[:-1]  # fusion renames the result
        words = [variable.name.split("_")[:-1] for variable in inner]
        return "_".join(w[0] for w in itertools.takewhile(lambda w: len(set(w)) == 1, zip(*words, strict=False)))

    def resolve(self, expr: Expr) -> Expr:
        """Follows variables to the expression that they are bound to."""
        return resolved(expr, self._values)

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
            if is_call(value, "relax.dequantize") and not is_constant(value.args[0]):
                found.append((self.params.index(value.args[0]), quant_params(value)))
        return found
