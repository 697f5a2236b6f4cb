"""What stays float: TVM's own legalization, one PrimFunc an operator."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

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
    out = 1
    for d in list(call.ty.shape)[1:]:
        out *= int(d)
    weight = [int(d) for d in call.args[1].ty.shape]
    if call.op.name == "relax.matmul":
        return out * weight[-2]
    reduction = 1
    for d in weight[1:]:
        reduction *= d
    return out * reduction


def legalize_float_ops(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with each remaining Relax operator as a PrimFunc of its own.

    They are not fused: LLVM contracts a*b + c inside of one function into an FMA, and PyTorch rounds the product.
    """
    # a reshape stays an operator, which the VM runs as a view
    return relax.transform.LegalizeOps(skip_ops=["relax.reshape"])(module)
