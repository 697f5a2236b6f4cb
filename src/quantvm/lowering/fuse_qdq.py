"""Groups every dequantize -> float ops -> quantize island into one composite function."""

from __future__ import annotations

import tvm
from tvm import relax

from .composite import is_call
from .patterns import all_patterns


def fuse_qdq(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with each quantized operator in a function whose attribute Composite names it.

    Constants, weights among them, are inside of the functions; activations are their parameters. Operators that no
    pattern takes are left as they are.
    """
    calls = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    concats = {len(call.args[0].ty.fields) for call in calls if is_call(call, "relax.concat")}
    return relax.transform.FuseOpsByPattern(all_patterns(concats), bind_constants=True)(module)
