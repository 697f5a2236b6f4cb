"""Tables of unary operators between quantized tensors, as this PyTorch computes them.

Sigmoid, and others that are not exact in float32, depend on the last bit of a vectorised exponential. That bit depends
on PyTorch's build and on the CPU, so no formula can reproduce it. But a unary operator between quantized tensors is a
function of one byte, so PyTorch computes all 256 results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import tvm

from quantvm.numerics.activations import ACTIVATIONS, Activation
from quantvm.numerics.tensor_iterator import VEC_BLOCK
from quantvm.numerics.torch_engines import QuantParams
from quantvm.numerics.unary_tables import table_key
from quantvm.qdq.activations import find
from quantvm.qdq.attributes import TORCH_TABLES, engine_of
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import is_call, is_per_tensor, quant_params
from quantvm.torch_compat import quantization_engine

_DTYPES = {"uint8": torch.quint8, "int8": torch.qint8}
_STORED = {"uint8": torch.uint8, "int8": torch.int8}
_ENTRIES = 256


def with_torch_tables(module: tvm.IRModule) -> tvm.IRModule:
    """Returns a module in Relax QDQ form with the attribute `quantvm.torch_tables`, if it has such operators."""
    values = definitions(module["main"])
    tables: dict[str, str] = {}
    for value in values.values():
        found = _inexact(value, values)
        if found is None:
            continue
        name, options, q_in, q_out = found
        key = table_key(name, options, q_in, q_out)
        if key not in tables:
            is_quantized = ACTIVATIONS[name].kernel is not None  # floats are computed under any engine
            with quantization_engine(engine_of(module)) if is_quantized else nullcontext():
                entries = torch_table(name, q_in, q_out, options)
            if entries is not None:
                tables[key] = entries.tobytes().hex()
    return module.with_attr(TORCH_TABLES, tables) if tables else module


def torch_table(name: str, q_in: QuantParams, q_out: QuantParams, options: tuple[float, ...] = ()) -> np.ndarray | None:
    """Returns (2, 256) outputs of PyTorch's operator for every input integer: by vector code and by scalar tails.

    PyTorch computes them under its current engine.

    Args:
        name: one of `ACTIVATIONS`; for those that PyTorch computes on floats, both rows are equal.
        q_in: parameters of the input.
        q_out: parameters of the output; the result is None if the operator cannot have them.
        options: the operator's further arguments, numbers.
    """
    activation = ACTIVATIONS[name]
    if activation.kernel is None:
        return _float_table(activation, q_in, q_out, options)
    integers = np.arange(q_in.quant_min, q_in.quant_max + 1).astype(q_in.dtype)
    tail = VEC_BLOCK // 2
    pieces = [integers, *(integers[at : at + tail] for at in range(0, _ENTRIES, tail))]
    try:
        results = [_quantized(activation, torch.from_numpy(piece), q_in, q_out, options) for piece in pieces]
    except RuntimeError:  # QNNPACK's sigmoid has only one output scale
        return None
    if (results[0].q_scale(), results[0].q_zero_point(), results[0].dtype) != (
        q_out.scale, q_out.zero_point, _DTYPES[q_out.dtype],
    ):  # fmt: skip
        return None
    return np.concatenate([result.int_repr().numpy() for result in results]).reshape(2, _ENTRIES)


def _function(activation: Activation) -> Callable[..., torch.Tensor]:
    return partial(attrgetter(activation.torch)(torch), **activation.torch_options)


def _float_table(
    activation: Activation, q_in: QuantParams, q_out: QuantParams, options: tuple[float, ...]
) -> np.ndarray:
    integers = torch.arange(q_in.quant_min, q_in.quant_max + 1, dtype=torch.int32)
    x_q = torch._make_per_tensor_quantized_tensor(integers.to(_STORED[q_in.dtype]), q_in.scale, q_in.zero_point)
    y_f32 = _function(activation)(x_q.dequantize(), *options)
    y = torch.quantize_per_tensor(y_f32, q_out.scale, q_out.zero_point, _DTYPES[q_out.dtype])
    return np.stack([y.int_repr().numpy()] * 2)


def _quantized(
    activation: Activation, integers: torch.Tensor, q_in: QuantParams, q_out: QuantParams, options: tuple[float, ...]
) -> torch.Tensor:
    x = torch._make_per_tensor_quantized_tensor(integers, q_in.scale, q_in.zero_point)
    if activation.kernel is not None and activation.kernel.operator:
        operator = getattr(torch.ops.quantized, activation.kernel.operator)
        return operator(x, q_out.scale, q_out.zero_point, *options)
    return _function(activation)(x, *options)


def _inexact(
    quantize: Any, values: Mapping[Any, Any]
) -> tuple[str, tuple[float, ...], QuantParams, QuantParams] | None:
    """Returns an inexact activation before this quantize and after a dequantize: name, options, both parameters."""
    if not is_call(quantize, "relax.quantize"):
        return None
    for activation in ACTIVATIONS.values():
        found = None if activation.is_exact else find(activation, quantize.args[0], lambda e: values.get(e, e))
        if found is not None:
            dequantize: Any = values.get(found.x)
            if activation.kernel is None and is_call(dequantize, "relax.astype"):
                dequantize = values.get(dequantize.args[0])
            if is_call(dequantize, "relax.dequantize") and is_per_tensor(dequantize):
                return activation.name, found.options, quant_params(dequantize), quant_params(quantize)
    return None
