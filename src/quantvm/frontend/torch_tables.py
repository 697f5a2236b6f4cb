"""Tables of quantized sigmoid and tanh, as this PyTorch computes them.

Both depend on the last bit of a vectorised exponential that belongs to PyTorch's build and to the CPU, which no formula
of ours can promise. A quantized unary operator is a function of one byte: PyTorch is asked for all 256 results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import tvm

from quantvm.numerics import VEC_BLOCK, QuantParams, table_key
from quantvm.torch_compat import quantization_engine

from .builder import definitions, is_call, per_tensor_params

TABLES_ATTR = "quantvm.torch_tables"
"""Module attribute: `numerics.table_key` -> 512 bytes in hexadecimal, as `torch_table` has them."""

_DTYPES = {"uint8": torch.quint8, "int8": torch.qint8}
_ENTRIES = 256


def with_torch_tables(module: tvm.IRModule, engine: str) -> tvm.IRModule:
    """Returns the module with the attribute `quantvm.torch_tables`, if it has a sigmoid or tanh of quantized tensors.

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
    return module.with_attr(TABLES_ATTR, tables) if tables else module


def torch_table(name: str, q_in: QuantParams, q_out: QuantParams, *, engine: str) -> np.ndarray | None:
    """Returns (2, 256) outputs of PyTorch's operator for every input integer: of its vector code, and of scalar tails.

    Args:
        name: sigmoid or tanh.
        q_in: parameters of the input.
        q_out: parameters of the output; None is returned where the operator has no such output.
        engine: of PyTorch.
    """
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


def _apply(name: str, integers: torch.Tensor, q_in: QuantParams, q_out: QuantParams) -> torch.Tensor:
    x = torch._make_per_tensor_quantized_tensor(integers, q_in.scale, q_in.zero_point)
    return torch.tanh(x) if name == "tanh" else torch.ops.quantized.sigmoid(x, q_out.scale, q_out.zero_point)


def _unary(quantize: Any, values: Mapping[Any, Any]) -> tuple[str, QuantParams, QuantParams] | None:
    """Returns the operator and the parameters on both sides of a quantize of a sigmoid or tanh of a dequantize."""
    if not is_call(quantize, "relax.quantize"):
        return None
    for name in ("sigmoid", "tanh"):
        inner: Any = values.get(quantize.args[0])
        if is_call(inner, f"relax.{name}"):
            dequantize: Any = values.get(inner.args[0])
            if is_call(dequantize, "relax.dequantize"):
                return name, per_tensor_params(dequantize), per_tensor_params(quantize)
    return None
