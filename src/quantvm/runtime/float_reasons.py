"""Why operators stay float, as far as the module tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tvm import relax
from tvm.ir import GenericConst, GlobalVar

from quantvm.lowering.composite import constant_value, is_call
from quantvm.lowering.fuse_qdq import fuse_qdq
from quantvm.lowering.patterns import all_patterns

_WEIGHTED = ("relax.nn.conv2d", "relax.matmul")


def float_reasons(module: Any, float_ops: Sequence[str]) -> tuple[str, ...]:
    """Returns one clause for each operator that was left in float.

    Args:
        module: Relax in QDQ form, before lowering.
        float_ops: what the lowering reports, `operator (variable)` in the order of the module.
    """
    if not float_ops:
        return ()
    fused = fuse_qdq(relax.transform.CanonicalizeBindings()(module))
    bindings = [binding for block in fused["main"].body.blocks for binding in block.bindings]
    graph = _Graph(fused, bindings)
    left = iter([binding for binding in bindings if hasattr(getattr(binding.value, "op", None), "name")])
    reasons = []
    for entry in float_ops:
        name = "relax." + entry.split(" ")[0]
        # The lowering keeps the order, so each is the next one of its name.
        binding = next((b for b in left if b.value.op.name == name), None)
        reasons.append("no kernel takes it" if binding is None else graph.reason(binding))
    return tuple(reasons)


class _Graph:
    """What produces and what reads each variable of a fused module."""

    def __init__(self, module: Any, bindings: Sequence[Any]) -> None:
        self._module = module
        self._values = {binding.var: binding.value for binding in bindings}
        self._readers: dict[Any, list[Any]] = {}
        for binding in bindings:
            for argument in _arguments(binding.value):
                self._readers.setdefault(argument, []).append(binding.value)

    def reason(self, binding: Any) -> str:
        """Returns why no pattern took the operator."""
        call = binding.value
        name = call.op.name
        if name in ("relax.quantize", "relax.dequantize"):
            per_channel = isinstance(call.args[1], GenericConst) and constant_value(call.args[1]).ndim > 0
            return "only weights may be quantized per channel" if per_channel else "its tensor has no batch"
        if name not in _known_ops():
            return "there is no int8 kernel for it"
        if name in _WEIGHTED:
            weight = self._weight(call)
            if weight is not None:
                return weight
        tensors = [a for a in _arguments(call) if str(getattr(a.ty, "dtype", "")) == "float32"]
        if any(is_call(self._values.get(a), "relax.astype") for a in tensors):
            return "the program itself computes it in float"
        if not all(isinstance(a, GenericConst) or self._is(self._values.get(a), "dequantize") for a in tensors):
            return "its input is not just dequantized"
        readers = self._readers.get(binding.var, [])
        if len(readers) != 1 or not self._is(readers[0], "quantize"):
            return "its result is not just quantized"
        return "its shapes, options or quantization parameters fit no kernel"

    def _weight(self, call: Any) -> str | None:
        weight = call.args[1]
        while is_call(self._values.get(weight), "relax.permute_dims"):
            weight = self._values[weight].args[0]
        if isinstance(weight, GenericConst):
            return "its weight is not quantized"
        source: Any = self._values.get(weight)
        if self._is(source, "dequantize") and isinstance(source.args[0], GenericConst):
            return None
        return "its weight is no constant"

    def _is(self, value: Any, operator: str) -> bool:
        """Whether a value is made by an operator, or by the composite of only that operator."""
        if is_call(value, f"relax.{operator}"):
            return True
        callee = getattr(value, "op", None)
        if not isinstance(callee, GlobalVar):
            return False
        attrs = self._module[callee].attrs
        return bool(attrs) and str(attrs.get("Composite", "")) == f"quantvm.{operator}"


def _arguments(value: Any) -> Iterator[Any]:
    for argument in getattr(value, "args", None) or getattr(value, "fields", None) or ():
        if isinstance(argument, relax.Tuple):
            yield from argument.fields
        else:
            yield argument


def _known_ops() -> frozenset[str]:
    """Returns the operators that occur in a pattern."""
    return frozenset(name for row in all_patterns() for name in _ops_in(row[1]))


def _ops_in(pattern: Any) -> Iterator[str]:
    if isinstance(pattern, relax.dpl.CallPattern):
        yield str(pattern.op.expr.name)
        for argument in pattern.args:
            yield from _ops_in(argument)
    elif isinstance(pattern, relax.dpl.TuplePattern):
        for field in pattern.fields:
            yield from _ops_in(field)
