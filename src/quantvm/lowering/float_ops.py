"""What stays float: TVM's own legalization, one PrimFunc an operator."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule
from tvm.sym.analyzer import Analyzer

_CONTRACTIONS = ("relax.nn.conv2d", "relax.matmul", "relax.nn.conv1d", "relax.nn.conv3d", "relax.nn.conv2d_transpose")


def float_ops(module: tvm.IRModule) -> tuple[tuple[str, ...], int]:
    """Returns the operators of `main` that run in float, and the multiply-adds among them per image."""
    names, macs = [], 0
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            name = getattr(getattr(call, "op", None), "name", "")
            if not name.startswith("relax.") or name in ("relax.call_tir",):
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
    batch, *rest = call.ty.shape
    out = math.prod(for_one_image(d) for d in rest) * (1 if hasattr(batch, "value") else for_one_image(batch))
    weight = [for_one_image(d) for d in call.args[1].ty.shape]
    return out * (weight[-2] if call.op.name == "relax.matmul" else math.prod(weight[1:]))


def rows_of_one_image(leading: list[Any]) -> int:
    """Returns the rows that one image has, of a tensor with these sizes in front of the last one.

    Without a dynamic size the first one is taken for the batch.
    """
    if all(isinstance(size, int) for size in leading):
        return math.prod(leading[1:])
    return math.prod(size if isinstance(size, int) else for_one_image(size) for size in leading)


def for_one_image(dimension: Any) -> int:
    """Returns a size with 1 in place of the batch."""
    analyzer = Analyzer()
    for variable in _variables(dimension):
        analyzer.bind(variable, tirx.IntImm("int64", 1))
    return int(analyzer.simplify(dimension))


def _variables(size: Any) -> set[Any]:
    if isinstance(size, tirx.Var):
        return {size}
    return {variable for part in ("a", "b") if hasattr(size, part) for variable in _variables(getattr(size, part))}


def legalize_float_ops(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with each remaining Relax operator as a PrimFunc of its own.

    They are not fused: LLVM contracts a*b + c inside of one function into an FMA, and PyTorch rounds the product.
    """
    # a reshape stays an operator, which the VM runs as a view
    module = relax.transform.LegalizeOps(skip_ops=["relax.reshape"])(module)
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not (function.attrs and "op_pattern" in function.attrs):
            module.update_func(variable, _in_parallel(function))
    return module


def _in_parallel(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Returns one of TVM's own functions with the outer loops of each of its steps shared by all threads."""
    schedule = Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops, kinds = schedule.get_loops(block), [v.iter_type for v in schedule.get(block).iter_vars]
        independent = next((i for i, kind in enumerate(kinds) if kind != tirx.IterVar.DataPar), len(kinds))
        outer = loops[: min(independent, max(len(loops) - 1, 1))]
        if len(kinds) != len(loops) or not outer:
            continue  # loops that are no dimension of the result
        schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
    return schedule.mod["main"].with_attrs(dict(function.attrs)) if function.attrs else schedule.mod["main"]
