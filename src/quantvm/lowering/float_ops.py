"""What stays float: TVM's own legalization, one PrimFunc an operator."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx
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
    out = math.prod(_for_one_image(d) for d in rest) * (1 if hasattr(batch, "value") else _for_one_image(batch))
    weight = [_for_one_image(d) for d in call.args[1].ty.shape]
    return out * (weight[-2] if call.op.name == "relax.matmul" else math.prod(weight[1:]))


def _for_one_image(dimension: Any) -> int:
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
    return relax.transform.LegalizeOps(skip_ops=["relax.reshape"])(module)
