"""Checks in the compiled code for what import cannot know: that dynamic sizes fit, and that computed indices exist.

TVM's own operators check neither the indices that they read or write, nor that sizes which they assume equal are so. A
call that does not fit stops with a message before memory outside of a tensor is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm.tirx.script.builder as T
from tvm import relax, tirx
from tvm.sym.analyzer import Analyzer

from quantvm.errors import INPUTS_MISFIT
from quantvm.kernels.builder import argument, flat, prim_func
from quantvm.lowering.index_operands import IndexOperand, index_operand_of
from quantvm.qdq.expressions import Expr, is_constant, op_name, shape_of
from quantvm.qdq.rewriting import Rewriter, with_arguments, with_operands
from quantvm.sizes import product

_OPAQUE = 8
"""TVM's `op_pattern` of functions that must not be fused."""


@dataclass(frozen=True)
class _Check:
    """A condition on one operand of a call.

    Attributes:
        operand: its number.
        sizes: for a check of indices, the sizes that they index, one for each entry of the last dimension; else pairs
            of sizes that must be equal.
        are_places: whether the operand holds indices.
        counts_back: whether indices may be negative, counted from the end.
        message: the end of the error message.
    """

    operand: int
    sizes: tuple[Any, ...]
    are_places: bool
    counts_back: bool
    message: str


def add_run_time_checks(module: tvm.IRModule) -> tvm.IRModule:
    """Adds checks of operands before the operators that need them.

    - take, gather and scatter: each computed index exists;
    - reshape, broadcast_to and matmul: sizes are equal, unless they are so for all dynamic sizes.

    Args:
        module: `main` before TVM's own operators become functions.
    """
    rewriter = _Rewriter(module)
    return rewriter.go() if rewriter.checks else module


class _Rewriter(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.checks = {var: found for var, value in self.bound.items() if (found := _checks(value))}

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        if var not in self.checks:
            return self.copied(var, value)
        call = with_operands(value, self.read)
        arguments = list(call.args)
        for check in self.checks[var]:
            checked = self._checked(arguments[check.operand], check, self.where(var, value))
            arguments[check.operand] = self.builder.emit(checked, f"{var.name}_checked")
        return self.builder.emit(with_arguments(call, arguments), var.name)

    def _checked(self, x: Expr, check: _Check, where: str) -> Expr:
        make = _checked_places if check.are_places else _checked_sizes
        target = self.builder.add_func(make(shape_of(x), str(x.ty.dtype), check, where), "checked")
        sizes = [_as_i64(size) for size in check.sizes]
        return relax.call_tir(target, [x, *sizes], relax.TensorType(shape_of(x), x.ty.dtype))


def _as_i64(size: Any) -> Any:
    return tirx.IntImm("int64", size) if isinstance(size, int) else size


def _checks(value: Any) -> list[_Check]:
    name = op_name(value)
    indices = index_operand_of(value)
    if indices is not None:
        if name == "relax.take" and str(value.attrs.mode) != "fast":
            return []
        return _indices_exist(value, indices, counts_back=name == "relax.scatter_elements")
    if name == "relax.reshape":
        before, after = shape_of(value.args[0]), shape_of(value)
        return _equal_sizes([(product(before), product(after))], f"{_text(before)} becomes {_text(after)}")
    if name == "relax.broadcast_to":
        before, after = shape_of(value.args[0]), shape_of(value)
        pairs = [(a, b) for a, b in zip(before[::-1], after[::-1], strict=False) if not (isinstance(a, int) and a == 1)]
        return _equal_sizes(pairs, f"{_text(before)} is repeated to {_text(after)}")
    if name == "relax.matmul":
        a, b = shape_of(value.args[0]), shape_of(value.args[1])
        return _equal_sizes([(a[-1], b[-2] if len(b) > 1 else b[0])], f"{_text(a)} times {_text(b)}")
    return []


def _indices_exist(call: Any, indices: IndexOperand, *, counts_back: bool) -> list[_Check]:
    """Returns the check of computed indices; `validate` checks constant indices into known sizes."""
    operand, sizes = indices.operand, indices.sizes
    if is_constant(call.args[operand]) and all(isinstance(size, int) for size in sizes):
        return []
    return [_Check(operand, sizes, True, counts_back, f"it takes a place outside of {_text(list(sizes))}")]


def _equal_sizes(pairs: list[tuple[Any, Any]], message: str) -> list[_Check]:
    analyzer = Analyzer()
    open_pairs = [
        (a, b)
        for a, b in pairs
        if not (isinstance(a, int) and isinstance(b, int)) and not analyzer.can_prove_equal(_as_i64(a), _as_i64(b))
    ]
    if not open_pairs:
        return []
    return [_Check(0, tuple(size for pair in open_pairs for size in pair), False, False, message)]


def _text(shape: list[Any]) -> str:
    return "(" + ", ".join(str(d).replace("T.int64", "").replace('"', "") for d in shape) + ")"


def _checked_places(shape: list[Any], dtype: str, check: _Check, where: str) -> tirx.PrimFunc:
    """Returns a function that copies indices, and stops at one that does not exist."""
    depth = len(check.sizes)
    with prim_func() as builder:
        T.func_name("checked")
        T.func_attr({"op_pattern": _OPAQUE})
        x, y, numel, sizes = _arguments(shape, dtype, depth)
        with T.serial(0, numel // depth) as row:
            for i, size in enumerate(sizes):
                place = tirx.Cast("int64", x[row * depth + i])
                least = -size if check.counts_back else tirx.IntImm("int64", 0)
                with T.Assert(tirx.all(place >= least, place < size), f"{INPUTS_MISFIT}{where}: {check.message}"):
                    T.buffer_store(y, x[row * depth + i], [row * depth + i])
    return builder.get()


def _checked_sizes(shape: list[Any], dtype: str, check: _Check, where: str) -> tirx.PrimFunc:
    """Returns a function that copies a tensor, but stops first if sizes differ."""
    with prim_func() as builder:
        T.func_name("checked")
        T.func_attr({"op_pattern": _OPAQUE})
        x, y, numel, sizes = _arguments(shape, dtype, len(check.sizes))
        pairs = zip(sizes[::2], sizes[1::2], strict=True)
        are_equal = tirx.all(*(a == b for a, b in pairs))
        with T.Assert(are_equal, f"{INPUTS_MISFIT}{where}: {check.message}"), T.serial(0, numel) as at:
            T.buffer_store(y, x[at], [at])
    return builder.get()


def _arguments(shape: list[Any], dtype: str, count: int) -> tuple[Any, Any, Any, list[Any]]:
    """Declares an operand, `count` numbers and a result of the operand's shape; dynamic sizes become variables."""
    dims = [d if isinstance(d, int) else tirx.Var(f"d{i}", "int64") for i, d in enumerate(shape)]
    x = argument("x", dims, dtype)
    numbers = [T.arg(f"size{i}", tirx.Var(f"size{i}", "int64")) for i in range(count)]
    y = argument("y", dims, dtype)
    numel = _as_i64(product(dims))
    return flat(x, numel), flat(y, numel), numel, numbers
