"""What stays float: TVM's own legalization, one PrimFunc an operator."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule

from .composite import static_shape

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
    """Returns the multiply-adds of a contraction per image: a dimension that is not known counts as one."""
    out = [d for d in static_shape(call)[1:] if isinstance(d, int)]
    weight = [d if isinstance(d, int) else 1 for d in static_shape(call.args[1])]
    depth = weight[-2:-1] if call.op.name == "relax.matmul" else weight[1:]
    return math.prod(out) * math.prod(depth)


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
