"""Other forms of a program with layers, made of its Relax form alone, whatever imported it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax

from quantvm.qdq.attributes import CHANNELS_LAST, with_attributes_of
from quantvm.qdq.bindings import definitions
from quantvm.tvm_compat import dataflow

if TYPE_CHECKING:
    from .layers import LayeredProgram


def with_layers(module: tvm.IRModule, layers: Sequence[Any]) -> tvm.IRModule:
    """Returns the module whose function returns, besides its outputs, what it binds to the variables `layers`."""
    return _rebuilt(module, lambda results: [*results, *layers])


def plain(program: LayeredProgram) -> tvm.IRModule:
    """Returns what `LayeredProgram.plain` says."""
    return _rebuilt(program.chained, lambda results: results[: program.n_outputs])


def outputs_of_layers(program: LayeredProgram) -> tvm.IRModule:
    """Returns Relax QDQ; (inputs, every layer's integers) -> the program's outputs, from the given layers."""
    layers = _results(program.chained)[program.n_outputs :]
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
    """Returns what `LayeredProgram.isolated` says, or `unrounded`."""
    n_inputs = len(program.chained["main"].params)
    layers = _results(program.chained)[program.n_outputs :]
    given = _given(program)
    # a tensor that is two layers at once has one variable, and readers may read either
    replaced = dict(zip(layers, given, strict=True))
    numbers = range(len(given)) if wanted is None else wanted

    def wanted_of(results: list[Any]) -> list[Any]:
        found = [results[program.n_outputs + i] for i in numbers]
        return [_before_rounding(program.chained, expr) for expr in found] if unrounded else found

    module = _rebuilt(program.chained, wanted_of, given, replaced)
    formats = [i + n_inputs for i, is_last in enumerate(channels_last) if is_last]
    return module.with_attr(CHANNELS_LAST, formats)


def _results(module: tvm.IRModule) -> list[Any]:
    """Returns the variables that `main` returns."""
    main = module["main"]
    bound = definitions(main)
    body = main.body.body
    while isinstance(body, relax.Var) and isinstance(bound.get(body), (relax.Var, relax.Tuple)):
        body = bound[body]
    return list(body.fields) if isinstance(body, relax.Tuple) else [body]


def _before_rounding(module: tvm.IRModule, expr: Any) -> Any:
    """Returns the float variable that a layer's integers are quantized from."""
    bound = definitions(module["main"])
    call = bound[expr]
    while str(getattr(call.op, "name", "")) != "relax.quantize":
        expr = call.args[0]
        call = bound[expr]
    return call.args[0]


def _rebuilt(
    module: tvm.IRModule, results_of: Any, extra: Sequence[Any] = (), replaced: dict[Any, Any] | None = None
) -> tvm.IRModule:
    """Returns the module with other results, whose readers of some variables read others.

    Args:
        module: of one function, `main`.
        results_of: the results of `main` -> those of the new one.
        extra: further parameters.
        replaced: variable -> what is read in its place.
    """
    main, builder = module["main"], relax.BlockBuilder()
    params = [relax.Var(p.name, p.ty) for p in main.params]
    made = dict(zip(main.params, params, strict=True))
    results = results_of(_results(module))
    read = dict(made)

    def copied(expr: Any, values: dict[Any, Any]) -> Any:
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([copied(field, values) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(copied(expr.tuple_value, values), expr.index)
        if isinstance(expr, tvm.ir.Call):
            arguments = [copied(argument, values) for argument in expr.args]
            return tvm.ir.Call(expr.op, arguments, expr.attrs, expr.ty_args)
        return expr

    with builder.function("main", [*params, *extra]):
        with dataflow(builder):
            for block in main.body.blocks:
                for binding in block.bindings:
                    value = copied(binding.value, read)
                    made[binding.var] = builder.emit(value, binding.var.name)
                    read[binding.var] = (replaced or {}).get(binding.var, made[binding.var])
            outputs = [made[result] for result in results]
            result = builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        builder.emit_func_output(result)
    rebuilt = relax.transform.DeadCodeElimination()(builder.get())
    return with_attributes_of(rebuilt, module)
