"""Moves quantization before data movements and max pools: q(op(x)) becomes op(q(x)), with the same integers.

Quantization is monotonic and element-wise, so it commutes with both. A concatenation of floats, or a max pool after a
convolution, then works on bytes, and the convolution stores bytes.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from quantvm.qdq.bindings import count_uses
from quantvm.qdq.expressions import Expr, is_call, is_per_tensor, op_name
from quantvm.qdq.rewriting import Rewriter, with_arguments

_COMMUTES = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "flatten", "squeeze", "expand_dims", "strided_slice", "nn.max_pool2d")
)


def hoist_quantize(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with per-tensor quantizations moved before the movements and max pools that they follow.

    Equal expressions are merged first. A movement or pool whose result has other uses too is left alone.
    """
    module = relax.transform.EliminateCommonSubexpr()(module)
    hoisted = _Hoister(module).go()
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(hoisted))


class _Hoister(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._uses = count_uses(self.main)

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        if is_call(value, "relax.quantize") and is_per_tensor(value):
            return self._quantized(value.args[0], value, var.name)
        if is_call(value, "relax.astype") and value.ty.dtype == value.args[0].ty.dtype:
            return self.read(value.args[0])  # marks what PyTorch computes in float; here everything is
        return self.copied(var, value)

    def _quantized(self, x: Any, quantize: Any, name: str) -> Any:
        """Emits quantize(x), moved before as many operators that compute x as possible; x is of the old function."""
        source: Any = self.bound.get(x) if isinstance(x, relax.Var) and self._uses[x] == 1 else None
        if is_call(source, "relax.concat"):
            operands = self.bound.get(source.args[0], source.args[0])
            if isinstance(operands, relax.Tuple):
                parts = [self._quantized(field, quantize, f"{name}_part") for field in operands.fields]
                return self.builder.emit(relax.op.concat(parts, int(source.attrs.axis)), name)
        elif op_name(source) in _COMMUTES:
            first = self._quantized(source.args[0], quantize, f"{name}_hoisted")
            rest = [self.read(argument) for argument in source.args[1:]]
            return self.builder.emit(with_arguments(source, [first, *rest]), name)
        return self.builder.emit(with_arguments(quantize, [self.read(x), *quantize.args[1:]]), name)
