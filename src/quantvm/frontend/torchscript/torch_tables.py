"""Tables of unary operators between quantized tensors, as this PyTorch computes them.

Sigmoid and tanh, and silu and gelu of float tensors between dequantize and quantize, depend on the last bit of a
vectorised exponential that belongs to PyTorch's build and to the CPU, which no formula of ours can promise. A unary
operator between quantized tensors is a function of one byte: PyTorch is asked for all 256 results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import tvm

from quantvm.numerics.torch_engines import VEC_BLOCK, QuantParams
from quantvm.numerics.unary_tables import elu_factors, elu_name, table_key
from quantvm.qdq.attributes import TORCH_TABLES
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import constant_value, is_call, is_constant, is_per_tensor, quant_params
from quantvm.torch_compat import quantization_engine

_DTYPES = {"uint8": torch.quint8, "int8": torch.qint8}
_STORED = {"uint8": torch.uint8, "int8": torch.int8}
_ENTRIES = 256
_OF_FLOATS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


def with_torch_tables(module: tvm.IRModule, engine: str) -> tvm.IRModule:
    """Returns the module with the attribute `quantvm.torch_tables`, if it has such operators.

    Args:
        module: Relax in QDQ form.
        engine: of PyTorch.
    """
    values = definitions(module["main"])
    tables: dict[str, str] = {}
    for value in values.values():
        found = _unary(value, values)
        if found is not None and table_key(*found) not in tables:
            entries = torch_table(*found, engine=engine)
            if entries is not None:
                tables[table_key(*found)] = entries.tobytes().hex()
    return module.with_attr(TORCH_TABLES, tables) if tables else module


def torch_table(name: str, q_in: QuantParams, q_out: QuantParams, *, engine: str) -> np.ndarray | None:
    """Returns (2, 256) outputs of PyTorch's operator for every input integer: of its vector code, and of scalar tails.

    Args:
        name: sigmoid, tanh or an `elu_name`; silu, gelu or gelu_tanh, of which scalar tails are not told apart.
        q_in: parameters of the input.
        q_out: parameters of the output; None is returned where the operator has no such output.
        engine: of PyTorch.
    """
    if name in _OF_FLOATS:
        return _float_table(name, q_in, q_out)
    integers = np.arange(q_in.quant_min, q_in.quant_max + 1).astype(q_in.dtype)
    with quantization_engine(engine):
        tail = VEC_BLOCK // 2
        pieces = [integers, *(integers[at : at + tail] for at in range(0, _ENTRIES, tail))]
        try:
            results = [_apply(name, torch.from_numpy(piece), q_in, q_out) for piece in pieces]
        except RuntimeError:  # QNNPACK's sigmoid has one output scale only
            return None
    if (results[0].q_scale(), results[0].q_zero_point(), results[0].dtype) != (
        q_out.scale, q_out.zero_point, _DTYPES[q_out.dtype],
    ):  # fmt: skip
        return None
    return np.concatenate([result.int_repr().numpy() for result in results]).reshape(2, _ENTRIES)


def _float_table(name: str, q_in: QuantParams, q_out: QuantParams) -> np.ndarray:
    integers = torch.arange(q_in.quant_min, q_in.quant_max + 1, dtype=torch.int32)
    x_q = torch._make_per_tensor_quantized_tensor(integers.to(_STORED[q_in.dtype]), q_in.scale, q_in.zero_point)
    y_f32 = _OF_FLOATS[name](x_q.dequantize())
    y = torch.quantize_per_tensor(y_f32, q_out.scale, q_out.zero_point, _DTYPES[q_out.dtype])
    return np.stack([y.int_repr().numpy()] * 2)


def _apply(name: str, integers: torch.Tensor, q_in: QuantParams, q_out: QuantParams) -> torch.Tensor:
    x = torch._make_per_tensor_quantized_tensor(integers, q_in.scale, q_in.zero_point)
    if name.startswith("elu "):
        return torch.ops.quantized.elu(x, q_out.scale, q_out.zero_point, *elu_factors(name))
    return torch.tanh(x) if name == "tanh" else torch.ops.quantized.sigmoid(x, q_out.scale, q_out.zero_point)


_OPERATORS = {
    "sigmoid": "relax.sigmoid",
    "tanh": "relax.tanh",
    "gelu": "relax.nn.gelu",
    "gelu_tanh": "relax.nn.gelu_tanh",
    "silu": "relax.divide",  # a table for another quotient is not looked up
}


def _unary(quantize: Any, values: Mapping[Any, Any]) -> tuple[str, QuantParams, QuantParams] | None:
    """Returns the operator and the parameters on both sides of a quantize of such an operator of a dequantize."""
    if not is_call(quantize, "relax.quantize"):
        return None
    inner: Any = values.get(quantize.args[0])
    elu = _elu(inner, values)
    if elu is not None:
        return elu[0], quant_params(elu[1]), quant_params(quantize)
    for name, op in _OPERATORS.items():
        if is_call(inner, op):
            dequantize: Any = values.get(inner.args[0])
            if name in _OF_FLOATS and is_call(dequantize, "relax.astype"):
                dequantize = values.get(dequantize.args[0])
            if is_call(dequantize, "relax.dequantize") and is_per_tensor(dequantize):
                return name, quant_params(dequantize), quant_params(quantize)
    return None


def _elu(product: Any, values: Mapping[Any, Any]) -> tuple[str, Any] | None:
    """Returns the name of an elu that the frontend wrote, and the dequantize of its input."""
    factors, expr = [], product
    for op, argument in (("multiply", 0), ("add", 1), ("multiply", 0), ("subtract", 0), ("exp", 0), ("multiply", 0)):
        if not is_call(expr, f"relax.{op}"):
            return None
        if op == "multiply":
            if not is_constant(expr.args[1]):
                return None
            factors.append(float(constant_value(expr.args[1])))
        expr = values.get(expr.args[argument])
    if not is_call(expr, "relax.minimum") or not is_call(values.get(expr.args[0]), "relax.dequantize"):
        return None
    scale, alpha, input_scale = factors
    return elu_name(alpha, scale, input_scale), values[expr.args[0]]
