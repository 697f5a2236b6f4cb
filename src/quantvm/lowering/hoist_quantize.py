"""Quantization moves in front of what only moves data or takes maxima: q(op(x)) becomes op(q(x)), the same integers.

Rounding to steps is monotonic and works on each element alone, so it commutes with both. A concatenation of floats, or
a max pool behind a convolution, then works on bytes, and the convolution stores bytes.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from quantvm.qdq.attributes import with_attributes_of
from quantvm.qdq.bindings import count_uses, definitions, with_operands
from quantvm.qdq.expressions import is_call, is_per_tensor, op_name
from quantvm.tvm_compat import dataflow

_COMMUTES = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "flatten", "squeeze", "expand_dims", "strided_slice", "nn.max_pool2d")
)


def hoist_quantize(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with per-tensor quantizations in front of the movements and max pools that they follow.

    Equal expressions are merged first. What has other uses besides the quantization is left alone.
    """
    module = relax.transform.EliminateCommonSubexpr()(module)
    main = module["main"]
    hoister = _Hoister(main)
    params = [relax.Var(p.name, p.ty) for p in main.params]
    hoister.values.update(zip(main.params, params, strict=True))
    with hoister.builder.function("main", params):
        with dataflow(hoister.builder):
            for var, value in definitions(main).items():
                hoister.values[var] = hoister.bind(var, value)
            result = hoister.builder.emit_output(with_operands(main.body.body, hoister.value))
        hoister.builder.emit_func_output(result)
    hoisted = hoister.builder.get()
    hoisted = with_attributes_of(hoisted, module)
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(hoisted))


class _Hoister:
    def __init__(self, main: Any) -> None:
        self.builder = relax.BlockBuilder()
        self.values: dict[Any, Any] = {}
        self._uses, self._definitions = count_uses(main), definitions(main)

    def value(self, expr: Any) -> Any:
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def bind(self, var: Any, value: Any) -> Any:
        if is_call(value, "relax.quantize") and is_per_tensor(value):
            return self._quantized(value.args[0], value, var.name)
        if is_call(value, "relax.astype") and value.ty.dtype == value.args[0].ty.dtype:
            return self.value(value.args[0])  # says of a float island that PyTorch computes it in float, as all here is
        return self.builder.emit(with_operands(value, self.value), var.name)

    def _quantized(self, x: Any, quantize: Any, name: str) -> Any:
        """Emits quantize(x), moved in front of what x is bound to as far as it goes; x is of the old function."""
        source: Any = self._definitions.get(x) if isinstance(x, relax.Var) and self._uses[x] == 1 else None
        if is_call(source, "relax.concat"):
            operands = self._definitions.get(source.args[0], source.args[0])
            if isinstance(operands, relax.Tuple):
                parts = [self._quantized(field, quantize, f"{name}_part") for field in operands.fields]
                return self.builder.emit(relax.op.concat(parts, int(source.attrs.axis)), name)
        elif op_name(source) in _COMMUTES:
            first = self._quantized(source.args[0], quantize, f"{name}_hoisted")
            rest = [self.value(argument) for argument in source.args[1:]]
            return self.builder.emit(tvm.ir.Call(source.op, [first, *rest], source.attrs, source.ty_args), name)
        call = tvm.ir.Call(quantize.op, [self.value(x), *quantize.args[1:]], quantize.attrs, quantize.ty_args)
        return self.builder.emit(call, name)
