"""Groups every dequantize -> float ops -> quantize island into one composite function."""

from __future__ import annotations

import tvm
from tvm import relax

from quantvm.numerics.activations import ACTIVATIONS
from quantvm.qdq.attributes import COMPOSITE_PREFIX
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import is_call

from .patterns import all_patterns

_ENDS = ("quantize", "dequantize")
_TORCH_ONLY = (
    "mean_of_axes", "bilinear", "prelu", *(row.name for row in ACTIVATIONS.values() if row.integer == "float"),
)  # fmt: skip
"""Composites that are lowered in PyTorch's arithmetic only; under other numerics their operators stay in float."""


def fuse_qdq(module: tvm.IRModule, *, ends_only: bool = False, torch_only: bool = True) -> tvm.IRModule:
    """Returns the module with each quantized operator in a function whose attribute Composite names it.

    Constants, including weights, are inside of the functions; activations are their parameters. Operators that no
    pattern matches stay as they are. With `ends_only`, only quantize and dequantize are matched. Without `torch_only`,
    operators for which only PyTorch's own arithmetic is known are not matched.
    """
    calls = definitions(module["main"]).values()
    concats = {len(call.args[0].ty.fields) for call in calls if is_call(call, "relax.concat")}
    patterns = [
        row
        for row in all_patterns(concats)
        if ((name := row[0].removeprefix(COMPOSITE_PREFIX)) in _ENDS or not ends_only)
        and (torch_only or name not in _TORCH_ONLY)
    ]
    return relax.transform.FuseOpsByPattern(patterns, bind_constants=True)(module)
