"""How a pass rebuilds `main`: only this module and the importers build it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax

from quantvm.errors import part
from quantvm.tvm_compat import dataflow

from .attributes import with_attributes_of
from .bindings import definitions, described
from .expressions import Expr


def built_main(
    params: Sequence[relax.Var], body: Callable[[relax.BlockBuilder], Expr], builder: relax.BlockBuilder | None = None
) -> tvm.IRModule:
    """Returns a module whose function `main` is one dataflow block.

    Args:
        params: of `main`.
        body: called with the builder; emits the bindings and returns the result.
        builder: `main` is added to its module, beside the functions already there; by default a new, empty one.
    """
    builder = relax.BlockBuilder() if builder is None else builder
    with builder.function("main", list(params)):
        with dataflow(builder):
            result = builder.emit_output(body(builder))
        builder.emit_func_output(result)
    return builder.get()


def with_operands(value: Expr, replaced: Callable[[Expr], Expr]) -> Expr:
    """Returns a bound expression with `replaced(operand)` in the place of each variable, constant or shape."""
    if isinstance(value, relax.Tuple):
        return relax.Tuple([with_operands(field, replaced) for field in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(replaced(value.tuple_value), value.index)
    if not hasattr(value, "args"):
        return replaced(value)
    return with_arguments(value, [with_operands(a, replaced) if isinstance(a, relax.Tuple) else replaced(a)
                                  for a in value.args])  # fmt: skip


def with_arguments(call: Expr, arguments: Sequence[Expr]) -> Expr:
    """Returns the same call with other arguments."""
    return tvm.ir.Call(call.op, list(arguments), call.attrs, call.ty_args)


class Rewriter:
    """Walks over `main` binding by binding and rebuilds it; this base class copies.

    A pass is a subclass: its `bind` replaces a binding, and it overrides other methods for what else it changes.
    The module's attributes are kept, and so are its other functions for which `keeps` returns True.

    Args:
        module: its `main` must be one dataflow block.

    Attributes:
        module: the old module.
        main: its function `main`.
        bound: what each variable of `main` is bound to, in order.
        builder: the builder that the new `main` is emitted to.
        values: what each old variable became: an expression, or any other object in a pass that overrides `read`.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module, self.main = module, module["main"]
        self.bound = definitions(self.main)
        functions = {v: f for v, f in module.functions.items() if v.name_hint != "main" and self.keeps(f)}
        self.builder = relax.BlockBuilder(tvm.IRModule(functions))
        self.values: dict[Any, Any] = {}

    def go(self) -> tvm.IRModule:
        """Returns the module with the new `main`."""
        params = self.parameters()
        for old, new in zip(self.main.params, params, strict=False):  # there may be more new ones
            self.values[old] = self.of_parameter(old, new)
        return with_attributes_of(built_main(params, self._body, self.builder), self.module)

    def _body(self, builder: relax.BlockBuilder) -> Expr:
        self.begin()
        for var, value in self.bound.items():
            with part(lambda: self.where(var, value)):  # noqa: B023 - called in the loop
                self.values[var] = self.bind(var, value)
        return self.result(self.main.body.body)

    # ------------------------------------------------------------------ what a pass may override

    def keeps(self, function: Any) -> bool:
        """Returns whether a function other than `main` stays in the module."""
        return True

    def parameters(self) -> list[relax.Var]:
        """Returns the parameters of the new `main`: those that replace the old ones, then any further ones."""
        return [relax.Var(param.name, param.ty) for param in self.main.params]

    def of_parameter(self, old: relax.Var, new: relax.Var) -> Any:
        """Returns the new value of an old parameter."""
        return new

    def begin(self) -> None:
        """Emits what comes before all bindings."""

    def where(self, var: relax.Var, value: Expr) -> str:
        """Returns the text that names the current binding in messages about unexpected errors."""
        return described(relax.VarBinding(var, value))

    def bind(self, var: relax.Var, value: Expr) -> Any:
        """Emits the replacement of a binding and returns it."""
        return self.copied(var, value)

    def read(self, expr: Expr) -> Expr:
        """Returns the new function's operand for an operand of the old one."""
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def result(self, expr: Expr) -> Expr:
        """Returns what `main` returns."""
        return with_operands(expr, self.read)

    # ------------------------------------------------------------------

    def copied(self, var: relax.Var, value: Expr) -> Expr:
        """Emits a binding unchanged, except that it reads the new operands."""
        return self.builder.emit(with_operands(value, self.read), var.name)
