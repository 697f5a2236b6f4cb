"""What a compiled model takes and returns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.attributes import interface_of
from quantvm.structure import Structure, output_names


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as the model calls it; outputs are `output`, or `output_0`, `output_1`, ...
        shape: logical shape; None where a dimension is dynamic.
        dtype: of the elements.
        quantization: of an output that is a dequantized tensor: all its values are such steps. Of an input that is only
            quantized, and always in the same way: the steps that it is rounded to. None otherwise.
        symbols: names of the dynamic dimensions, None for known ones; empty if the only one is n. Inputs that share a
            symbol have equal sizes there.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    quantization: QuantParams | None = None
    symbols: tuple[str | None, ...] = ()

    @property
    def dimensions(self) -> tuple[int | str, ...]:
        """The shape with the symbol of each dynamic dimension."""
        symbols = self.symbols or ("n",) * len(self.shape)
        return tuple(symbol or "n" if d is None else d for d, symbol in zip(self.shape, symbols, strict=True))

    @property
    def shape_text(self) -> str:
        """The shape with n for a dynamic dimension, as `(n, 3, 224, 224)`."""
        return "(" + ", ".join(map(str, self.dimensions)) + ")"


@dataclass(frozen=True)
class Signature:
    """All inputs and outputs of a model, in order.

    Attributes:
        inputs: what it takes.
        outputs: what it returns.
        structure: how the outputs are nested, see `quantvm.structure`; None for a tensor, or a tuple of several.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Structure | None = None


def signature_of(module: Any) -> Signature:
    """Returns the signature of the function `main` of a module in Relax QDQ form."""
    from quantvm.qdq.bindings import definitions, resolved, results_of

    function = module["main"]
    values, returned = definitions(function), results_of(function)
    interface = interface_of(module)
    input_names = interface.get("inputs") or [str(p.name) for p in function.params]
    inputs = tuple(
        TensorSpec(name, _shape(p.ty), str(p.ty.dtype), _input_quantization(p, function, values), _symbols(p.ty))
        for name, p in zip(input_names, function.params, strict=True)
    )
    structure = interface.get("outputs")
    names = ["output"] if len(returned) == 1 else [f"output_{i}" for i in range(len(returned))]
    names = names if structure is None else output_names(structure)
    outputs = tuple(
        TensorSpec(name, _shape(expr.ty), str(expr.ty.dtype), _quantization(resolved(expr, values)), _symbols(expr.ty))
        for name, expr in zip(names, returned, strict=True)
    )
    return Signature(inputs, outputs, structure)


def _input_quantization(param: Any, function: Any, values: dict[Any, Any]) -> QuantParams | None:
    from tvm import relax

    from quantvm.qdq.expressions import constant_value, is_call, quant_params

    found: set[QuantParams] = set()
    for value in [*values.values(), function.body.body]:
        if not any(variable.same_as(param) for variable in relax.analysis.free_vars(value)):
            continue
        if not is_call(value, "relax.quantize") or constant_value(value.args[1]).ndim:
            return None
        found.add(quant_params(value))
    return found.pop() if len(found) == 1 else None


def _quantization(expr: Any) -> QuantParams | None:
    from quantvm.qdq.expressions import constant_value, is_call, quant_params

    if not is_call(expr, "relax.dequantize") or constant_value(expr.args[1]).ndim:
        return None
    return quant_params(expr)


def _shape(tensor_type: Any) -> tuple[int | None, ...]:
    return tuple(int(d) if hasattr(d, "value") else None for d in tensor_type.shape)


def _symbols(tensor_type: Any) -> tuple[str | None, ...]:
    symbols = tuple(None if hasattr(d, "value") else _printed(d) for d in tensor_type.shape)
    return () if {symbol for symbol in symbols if symbol is not None} <= {"n"} else symbols


def _printed(size: Any) -> str:
    """Returns a symbolic size as text, such as n*16."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size)).replace(" ", "")
