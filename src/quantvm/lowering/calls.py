"""Which layer each function call of a lowered module computes, for profiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import tvm

from quantvm.qdq.attributes import kernel_name
from quantvm.qdq.bindings import bindings_of
from quantvm.qdq.expressions import is_call, is_constant


@dataclass(frozen=True)
class KernelCall:
    """One call of a PrimFunc.

    Attributes:
        layer: module path in PyTorch with underscores, like layer1_0_conv1, as far as the frontend knew it. Layers that
            became equal composites, including equal constants, have the name of the first.
        op: composite that it replaces, like conv2d; for an operator left in float, the function's name.
        kernel: name of the kernel; empty for an operator left in float.
        function: name in the compiled code.
        n_inputs: how many of the first arguments are activations; constants and the output follow.
        macs: multiply-adds in 8-bit integers per image.
    """

    layer: str
    op: str
    kernel: str
    function: str
    n_inputs: int
    macs: int


def kernel_calls(module: tvm.IRModule, legalized: Iterable[KernelCall]) -> tuple[KernelCall, ...]:
    """Returns the calls of `main` in the order in which the compiled code makes them.

    Args:
        module: a lowered module; its only Relax operators are reshapes, which run as views.
        legalized: the calls of kernels in the order of their emission, without `function`.
    """
    known, found = iter(legalized), []
    for binding in bindings_of(module["main"]):
        if not is_call(binding.value, "relax.call_tir"):
            continue
        callee, arguments = binding.value.args[:2]
        kernel = kernel_name(module[callee])
        if kernel is not None:
            found.append(replace(next(known), function=callee.name_hint))
            assert found[-1].kernel == kernel, "calls are not in the order of their emission"
        else:
            activations = [a for a in arguments.fields if not is_constant(a)]
            name = callee.name_hint
            found.append(KernelCall(binding.var.name, name, "", name, len(activations), 0))
    assert next(known, None) is None, "a kernel's call was removed"
    return tuple(found)
