"""Operators that stay in float: TVM legalizes them, each to a PrimFunc of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import tvm
from tvm import relax, te, tirx, topi
from tvm.s_tir import Schedule
from tvm.sym.analyzer import Analyzer

from quantvm.errors import CompileError
from quantvm.qdq.bindings import bindings_of
from quantvm.qdq.expressions import op_name

_CONTRACTIONS = ("relax.nn.conv2d", "relax.matmul", "relax.nn.conv1d", "relax.nn.conv3d", "relax.nn.conv2d_transpose")


def float_ops(module: tvm.IRModule) -> tuple[tuple[str, ...], int]:
    """Returns the operators of `main` that run in float, and their multiply-adds per image."""
    names, macs = [], 0
    for binding in bindings_of(module["main"]):
        call = binding.value
        name = op_name(call)
        if not name.startswith("relax.") or name == "relax.call_tir":
            continue
        if str(getattr(call.ty, "dtype", "")) == "float32" and name not in _MOVEMENT:
            names.append(f"{name.removeprefix('relax.')} ({binding.var.name})")
        if name in _CONTRACTIONS:
            macs += _float_macs(call)
    return tuple(names), macs


_MOVEMENT = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "strided_slice", "squeeze", "expand_dims", "concat", "split")
)


def _float_macs(call: Any) -> int:
    """Returns the multiply-adds of a contraction for one image."""
    sizes = list(call.ty.shape)  # none for a product of two vectors
    out = math.prod(for_one_image(d) for d in sizes[1:])
    out *= math.prod(1 if hasattr(batch, "value") else for_one_image(batch) for batch in sizes[:1])
    if call.op.name == "relax.matmul":
        return out * for_one_image(call.args[0].ty.shape[-1])
    return out * math.prod(for_one_image(d) for d in list(call.args[1].ty.shape)[1:])


def rows_of_one_image(leading: list[Any]) -> int:
    """Returns how many rows one image has in a tensor with these sizes before the last.

    If no size is dynamic, the first is taken for the batch.
    """
    if all(isinstance(size, int) for size in leading):
        return math.prod(leading[1:])
    return math.prod(size if isinstance(size, int) else for_one_image(size) for size in leading)


def for_one_image(dimension: Any) -> int:
    """Returns a size for a batch of 1."""
    analyzer = Analyzer()
    for variable in _variables(dimension):
        analyzer.bind(variable, tirx.IntImm("int64", 1))
    return int(analyzer.simplify(dimension))


def _variables(size: Any) -> set[Any]:
    if isinstance(size, tirx.Var):
        return {size}
    return {variable for part in ("a", "b") if hasattr(size, part) for variable in _variables(getattr(size, part))}


def legalize_float_ops(module: tvm.IRModule, rules: Mapping[str, Any] = MappingProxyType({})) -> tvm.IRModule:
    """Returns the module with each remaining Relax operator as a PrimFunc of its own.

    They are not fused: LLVM contracts a*b + c inside of one function into an FMA, but PyTorch rounds the product.

    Args:
        module: a Relax module.
        rules: `PYTORCHS` for a program of PyTorch; in ONNX Runtime and LiteRT, max pools start at the least finite
            number, as in TVM.

    Raises:
        CompileError: operators for which no code can be generated; one message names them all.
    """
    _check_operators(module, lambda call: not _is_generated(call) and not _has_rule(call))
    # reshapes stay operators: the VM runs them as views
    module = relax.transform.LegalizeOps({**_ORDERING, **rules}, skip_ops=["relax.reshape"])(module)
    _check_operators(module, lambda call: not _is_generated(call))
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not (function.attrs and "op_pattern" in function.attrs):
            module.update_func(variable, _in_parallel(function))
    return module


_GENERATED = frozenset(
    f"relax.{name}"
    for name in ("call_tir", "reshape", "shape_of", "tensor_to_shape", "call_dps_packed", "call_pure_packed")
)
"""Operators that the VM runs without a PrimFunc."""


def _is_generated(call: Any) -> bool:
    return not isinstance(call.op, tvm.ir.Op) or str(call.op.name) in _GENERATED


def _has_rule(call: Any) -> bool:
    """Whether TVM or `_ORDERING` can turn an operator into a PrimFunc."""
    return str(call.op.name) in _ORDERING or call.op.get_attr("FLegalize") is not None


def _check_operators(module: tvm.IRModule, fails: Callable[[Any], bool]) -> None:
    """Raises one error for all calls that fail, and for calls of functions that do not exist."""
    problems = []
    functions = {variable.name_hint for variable in module.functions}
    for function in module.functions.values():
        if not isinstance(function, relax.Function):
            continue
        for binding in bindings_of(function):
            call, layer = getattr(binding, "value", None), binding.var.name
            if not isinstance(call, tvm.ir.Call):
                continue
            missing = [v.name_hint for v in (call.op, *call.args)
                       if isinstance(v, tvm.ir.GlobalVar) and v.name_hint not in functions]  # fmt: skip
            problems += [f"{name} ({layer}), a function that is not there" for name in missing]
            if isinstance(call.op, tvm.ir.Op) and fails(call):
                problems.append(f"{str(call.op.name).removeprefix('relax.')} ({layer})")
    if problems:
        raise CompileError(
            f"there is no code for {len(problems)} operators: {', '.join(problems)} (layers in parentheses). Replace "
            "them in the model by operators of `quantvm list ops`, or compute them outside of the compiled model"
        )


def _scanned(operator: Callable[..., Any]) -> Callable[[relax.BlockBuilder, Any], Any]:
    def legalized(builder: relax.BlockBuilder, call: Any) -> Any:
        axis = None if call.attrs.axis is None else int(call.attrs.axis)
        return builder.call_te(operator, call.args[0], axis, str(call.ty.dtype), bool(call.attrs.exclusive))

    return legalized


def _sorted(builder: relax.BlockBuilder, call: Any) -> Any:
    return builder.call_te(topi.sort, call.args[0], int(call.attrs.axis), not call.attrs.descending)


def _argsorted(builder: relax.BlockBuilder, call: Any) -> Any:
    ascending, dtype = not call.attrs.descending, str(call.ty.dtype)
    return builder.call_te(topi.argsort, call.args[0], None, int(call.attrs.axis), ascending, dtype)


def _max_pooled(builder: relax.BlockBuilder, call: Any) -> Any:
    """Emits a max pool that starts at -inf; TVM's starts at the least finite number."""
    attrs = call.attrs
    if str(attrs.layout) != str(attrs.out_layout or attrs.layout) or not str(attrs.layout).startswith("NC"):
        raise CompileError(f"max_pool of the layout {attrs.layout}, expected channels before height and width")
    kernel, strides, dilation = ([int(v) for v in held] for held in (attrs.pool_size, attrs.strides, attrs.dilation))
    before = [int(v) for v in attrs.padding][: len(kernel)]
    image, shape = list(call.args[0].ty.shape)[2:], list(call.ty.shape)
    least = tirx.const(float("-inf"), str(call.ty.dtype))

    def pool(x: Any) -> Any:
        reducer = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda _: least, name="max")
        taps = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(kernel)]

        def element(n: Any, c: Any, *at: Any) -> Any:
            places = [o * s + t * d - p for o, s, t, d, p in zip(at, strides, taps, dilation, before, strict=True)]
            inside = tirx.all(*(tirx.all(i >= 0, i < size) for i, size in zip(places, image, strict=True)))
            return reducer(tirx.if_then_else(inside, x(n, c, *places), least), axis=taps)

        return te.compute(shape, element, name="max_pool")

    return builder.call_te(pool, call.args[0], primfunc_name_hint="max_pool")


PYTORCHS = {f"relax.nn.max_pool{rank}d": _max_pooled for rank in (1, 2, 3)}
"""Operators for which TVM's own code differs from PyTorch: for -inf, and for windows entirely in the padding."""
_ORDERING = {
    "relax.cumsum": _scanned(topi.cumsum),
    "relax.cumprod": _scanned(topi.cumprod),
    "relax.sort": _sorted,
    "relax.argsort": _argsorted,
}
"""Operators that TVM legalizes only in a separate pass. Sorting is stable."""


def _in_parallel(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Returns a function that TVM generated, with the outer loops of each step distributed over all threads."""
    if function.body.block.name_hint != "root":
        return function  # a single hand-written step of TVM, like sorting
    schedule = Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops, kinds = schedule.get_loops(block), [v.iter_type for v in schedule.get(block).iter_vars]
        independent = next((i for i, kind in enumerate(kinds) if kind != tirx.IterVar.DataPar), len(kinds))
        outer = loops[: min(independent, max(len(loops) - 1, 1))]
        if len(kinds) != len(loops) or not outer:
            continue  # loops that do not belong to a dimension of the result
        if any(getattr(schedule.get(loop).extent, "value", 1) == 0 for loop in outer):
            continue  # a tensor without elements
        schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
    return schedule.mod["main"].with_attrs(dict(function.attrs)) if function.attrs else schedule.mod["main"]
