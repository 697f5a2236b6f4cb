"""What a compiled model takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantvm.numerics import QuantParams


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as the model calls it; `output` or `output_0`, `output_1`, ... for what it returns.
        shape: logical shape; None where a dimension is dynamic.
        dtype: of the elements.
        quantization: of an output that is just dequantized: each of its values is one of these steps. Of an input
            that is only ever quantized, and in one way: the steps that it is rounded to. None otherwise.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    quantization: QuantParams | None = None

    @property
    def shape_text(self) -> str:
        """The shape with n for a dynamic dimension, as `(n, 3, 224, 224)`."""
        return "(" + ", ".join("n" if d is None else str(d) for d in self.shape) + ")"


@dataclass(frozen=True)
class Signature:
    """All inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature_of(module: Any) -> Signature:
    """Returns the signature of the function `main` of a module in Relax QDQ form."""
    function = module["main"]
    values = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
    inputs = tuple(
        TensorSpec(str(p.name), _shape(p.ty), str(p.ty.dtype), _input_quantization(p, function, values))
        for p in function.params
    )
    result = _resolved(function.body.body, values)
    returned = list(result.fields) if hasattr(result, "fields") else [function.body.body]
    names = ["output"] if len(returned) == 1 else [f"output_{i}" for i in range(len(returned))]
    outputs = tuple(
        TensorSpec(name, _shape(expr.ty), str(expr.ty.dtype), _quantization(_resolved(expr, values)))
        for name, expr in zip(names, returned, strict=True)
    )
    return Signature(inputs, outputs)


def _resolved(expr: Any, values: dict[Any, Any]) -> Any:
    while expr in values:
        expr = values[expr]
    return expr


def _input_quantization(param: Any, function: Any, values: dict[Any, Any]) -> QuantParams | None:
    from tvm import relax

    from quantvm.lowering.composite import constant_value, is_call, quant_params

    found: set[QuantParams] = set()
    for value in [*values.values(), function.body.body]:
        if not any(variable.same_as(param) for variable in relax.analysis.free_vars(value)):
            continue
        if not is_call(value, "relax.quantize") or constant_value(value.args[1]).ndim:
            return None
        found.add(quant_params(value))
    return found.pop() if len(found) == 1 else None


def _quantization(expr: Any) -> QuantParams | None:
    from quantvm.lowering.composite import constant_value, is_call, quant_params

    if not is_call(expr, "relax.dequantize") or constant_value(expr.args[1]).ndim:
        return None
    return quant_params(expr)


def _shape(tensor_type: Any) -> tuple[int | None, ...]:
    return tuple(int(d) if hasattr(d, "value") else None for d in tensor_type.shape)
