"""Other forms of a program with layers, derived from its Relax form alone, for every importer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax

from quantvm.qdq.attributes import CHANNELS_LAST
from quantvm.qdq.bindings import definitions, results_of
from quantvm.qdq.expressions import Expr, is_call
from quantvm.qdq.rewriting import Rewriter

if TYPE_CHECKING:
    from .layers import LayeredProgram


def with_layers(module: tvm.IRModule, layers: Sequence[Any]) -> tvm.IRModule:
    """Returns the module with a function that also returns the variables `layers`, after its outputs."""
    return _rebuilt(module, lambda results: [*results, *layers])


def plain(program: LayeredProgram) -> tvm.IRModule:
    """See `LayeredProgram.plain`."""
    return _rebuilt(program.chained, lambda results: results[: program.n_outputs])


def outputs_of_layers(program: LayeredProgram) -> tvm.IRModule:
    """Returns Relax QDQ; (inputs, every layer's integers) -> the program's outputs, from the given layers."""
    layers = results_of(program.chained["main"])[program.n_outputs :]
    given = _given(program)
    replaced = dict(zip(layers, given, strict=True))

    def of_given(results: list[Any]) -> list[Any]:
        return results[: program.n_outputs]

    return _rebuilt(program.chained, of_given, given, replaced)


def _given(program: LayeredProgram) -> list[Any]:
    return [
        relax.Var(f"layer_{i}", relax.TensorType(list(layer.shape), layer.q.dtype))
        for i, layer in enumerate(program.layers)
    ]


def isolated(
    program: LayeredProgram, channels_last: Sequence[bool], wanted: Sequence[int] | None = None, *,
    unrounded: bool = False,
) -> tvm.IRModule:  # fmt: skip
    """See `LayeredProgram.isolated` and `LayeredProgram.unrounded`."""
    n_inputs = len(program.chained["main"].params)
    layers = results_of(program.chained["main"])[program.n_outputs :]
    given = _given(program)
    # two layers that are the same tensor share a variable; readers may read either
    replaced = dict(zip(layers, given, strict=True))
    numbers = range(len(given)) if wanted is None else wanted

    def wanted_of(results: list[Any]) -> list[Any]:
        found = [results[program.n_outputs + i] for i in numbers]
        return [_before_rounding(program.chained, expr) for expr in found] if unrounded else found

    module = _rebuilt(program.chained, wanted_of, given, replaced)
    formats = [i + n_inputs for i, is_last in enumerate(channels_last) if is_last]
    return module.with_attr(CHANNELS_LAST, formats)


def _before_rounding(module: tvm.IRModule, expr: Any) -> Any:
    """Returns the float variable that a layer's integers are quantized from."""
    bound = definitions(module["main"])
    call = bound[expr]
    while not is_call(call, "relax.quantize"):
        expr = call.args[0]
        call = bound[expr]
    return call.args[0]


def _rebuilt(
    module: tvm.IRModule, chosen: Any, extra: Sequence[Any] = (), replaced: dict[Any, Any] | None = None
) -> tvm.IRModule:
    """Returns the module with other results, and with some variables replaced where they are read.

    Args:
        module: its only function is `main`.
        chosen: results of the old `main` -> results of the new one.
        extra: further parameters.
        replaced: variable -> its replacement.
    """
    return relax.transform.DeadCodeElimination()(_Rewriter(module, chosen, extra, replaced or {}).go())


class _Rewriter(Rewriter):
    def __init__(self, module: tvm.IRModule, chosen: Any, extra: Sequence[relax.Var], replaced: dict[Any, Any]) -> None:
        super().__init__(module)
        self._chosen, self._extra, self._replaced = chosen, extra, replaced
        self._made: dict[Any, Any] = {}

    def parameters(self) -> list[relax.Var]:
        return [*super().parameters(), *self._extra]

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        self._made[var] = self.copied(var, value)
        return self._replaced.get(var, self._made[var])

    def result(self, expr: Expr) -> Expr:
        results = [self._made.get(result, self.read(result)) for result in self._chosen(results_of(self.main))]
        return results[0] if len(results) == 1 else relax.Tuple(results)
