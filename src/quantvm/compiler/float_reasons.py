"""Why operators stay float, as far as the module shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tvm import relax
from tvm.ir import GlobalVar

from quantvm.lowering.fuse_qdq import fuse_qdq
from quantvm.lowering.patterns import all_patterns
from quantvm.lowering.qdq.regions import BINARY, UNARY, dequantized_params
from quantvm.qdq.attributes import composite_name
from quantvm.qdq.bindings import bindings_of, definitions
from quantvm.qdq.expressions import constant_value, is_call, is_constant, is_per_tensor, op_name

_WEIGHTED = ("relax.nn.conv2d", "relax.matmul")
_POOLS = ("relax.mean", "relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d", "relax.nn.max_pool2d")
_PER_CHANNEL = "only weights may be quantized per channel"


def float_reasons(module: Any, float_ops: Sequence[str], numerics: str = "torch") -> tuple[str, ...]:
    """Returns one clause for each operator that was left in float.

    Args:
        module: Relax in QDQ form, before lowering.
        float_ops: what the lowering reports, `operator (variable)`.
        numerics: those that it was lowered with.
    """
    if not float_ops:
        return ()
    module = relax.transform.CanonicalizeBindings()(module)
    module = module if numerics == "qdq" else fuse_qdq(module)
    bindings = bindings_of(module["main"])
    graph = (_QdqGraph if numerics == "qdq" else _Graph)(module, bindings)
    left = [binding for binding in bindings if op_name(binding.value)]
    reasons = []
    for entry in float_ops:
        operator, _, variable = entry.partition(" ")
        alike = [binding for binding in left if binding.value.op.name == f"relax.{operator}"]
        named = [binding for binding in alike if binding.var.name == variable.strip("()")]
        written_out = None if named else _written_out(variable.strip("()"), bindings)
        binding = next(iter(named or alike), None)
        if written_out is not None or binding is None:
            reasons.append(written_out or "no kernel takes it")
            continue
        left = [other for other in left if not other.same_as(binding)]
        reasons.append(graph.reason(binding))
    return tuple(reasons)


def _written_out(variable: str, bindings: Sequence[Any]) -> str | None:
    """Returns the reason for an operator that the lowering itself added for a quantization along an axis."""
    for binding in bindings:
        is_part = variable.startswith(f"{binding.var.name}_") or variable == binding.var.name
        if is_part and is_call(binding.value, "relax.quantize") and not is_per_tensor(binding.value):
            return _PER_CHANNEL
    return None


class _Graph:
    """The producer and the readers of each variable of a fused module."""

    def __init__(self, module: Any, bindings: Sequence[Any]) -> None:
        self._module = module
        self._values = {binding.var: binding.value for binding in bindings}
        self._readers: dict[Any, list[Any]] = {}
        for binding in bindings:
            for argument in _arguments(binding.value):
                self._readers.setdefault(argument, []).append(binding.value)

    def reason(self, binding: Any) -> str:
        """Returns why no pattern matched the operator."""
        call = binding.value
        name = call.op.name
        if name in ("relax.quantize", "relax.dequantize"):
            return self._end(call)
        if name not in _known_ops():
            return "there is no int8 kernel for it"
        if name in _WEIGHTED:
            weight = self._weight(call)
            if weight is not None:
                return weight
        tensors = [a for a in _arguments(call) if str(getattr(a.ty, "dtype", "")) == "float32"]
        if any(is_call(self._values.get(a), "relax.astype") for a in tensors):
            return "the program itself computes it in float"
        if not all(is_constant(a) or self._is_result_of(self._values.get(a), "dequantize") for a in tensors):
            return "its input is not just dequantized"
        readers = self._readers.get(binding.var, [])
        if len(readers) != 1 or not self._is_result_of(readers[0], "quantize"):
            return "its result is not just quantized"
        return "its shapes, options or quantization parameters fit no kernel"

    def _end(self, call: Any) -> str:
        """Returns why no pattern matched a quantize or dequantize."""
        if is_constant(call.args[0]):
            return "what reads it is computed in float"
        per_channel = is_constant(call.args[1]) and constant_value(call.args[1]).ndim > 0
        return _PER_CHANNEL if per_channel else "its tensor has no batch"

    def _weight(self, call: Any) -> str | None:
        weight = call.args[1]
        while is_call(self._values.get(weight), "relax.permute_dims"):
            weight = self._values[weight].args[0]
        if is_constant(weight):
            return "its weight is not quantized"
        source: Any = self._values.get(weight)
        if self._is_result_of(source, "dequantize") and is_constant(source.args[0]):
            return None
        return "its weight is no constant"

    def _is_result_of(self, value: Any, operator: str) -> bool:
        """Whether a value is the result of an operator, or of the composite of that operator alone."""
        if is_call(value, f"relax.{operator}"):
            return True
        callee = getattr(value, "op", None)
        return isinstance(callee, GlobalVar) and composite_name(self._module[callee]) == operator


class _QdqGraph(_Graph):
    """The same for a module whose kernels come from `lowering.qdq.regions`, not from patterns."""

    def __init__(self, module: Any, bindings: Sequence[Any]) -> None:
        super().__init__(module, bindings)
        self._definitions = definitions(module["main"])

    def reason(self, binding: Any) -> str:
        """Returns why the operator is in no region."""
        call = binding.value
        name = call.op.name
        if name in ("relax.quantize", "relax.dequantize"):
            return self._end(call)
        if name in _WEIGHTED:
            weight = self._weight(call)
            if weight is not None:
                return weight
            if dequantized_params(call.args[0], self._definitions) is None:
                return "its input is not just dequantized"
        elif name not in (*UNARY, *BINARY, *_POOLS):
            return "there is no int8 kernel for it"
        return "its shapes, options or quantization parameters fit no kernel"


def _arguments(value: Any) -> Iterator[Any]:
    for argument in getattr(value, "args", None) or getattr(value, "fields", None) or ():
        if isinstance(argument, relax.Tuple):
            yield from argument.fields
        else:
            yield argument


def _known_ops() -> frozenset[str]:
    """Returns the operators in a pattern."""
    return frozenset(name for row in all_patterns() for name in _ops_in(row[1]))


def _ops_in(pattern: Any) -> Iterator[str]:
    if isinstance(pattern, relax.dpl.CallPattern):
        yield str(pattern.op.expr.name)
        for argument in pattern.args:
            yield from _ops_in(argument)
    elif isinstance(pattern, relax.dpl.TuplePattern):
        for field in pattern.fields:
            yield from _ops_in(field)
