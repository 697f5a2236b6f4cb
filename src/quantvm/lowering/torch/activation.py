"""What a unary composite computes on the integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantvm.numerics import torch_engines as numerics
from quantvm.numerics import unary_tables as tables
from quantvm.numerics.torch_engines import Engine
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, quant_params


def unary_tables(engine: Engine, composite: Composite, known: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (256,) outputs for every input integer: of PyTorch's vector code, and of its scalar tails.

    Args:
        engine: whose arithmetic to follow.
        composite: hardswish, hardsigmoid, sigmoid, tanh, leaky_relu, silu, gelu or gelu_tanh.
        known: tables that PyTorch computed, by `table_key`, as hexadecimal digits.
    """
    q, name = quant_params(composite.call("relax.dequantize")), _table_name(composite)
    digits = known.get(tables.table_key(name, q, composite.output))
    if digits is not None:
        main, tail = np.frombuffer(bytes.fromhex(digits), composite.output.dtype).reshape(2, 256)
        return main, tail
    if engine == "qnnpack" and composite.name in ("hardswish", "hardsigmoid", "sigmoid") and q.dtype == "uint8":
        entries = tables.qnnpack_table(composite.name, q, composite.output)
        return entries, entries
    return tables.unary_tables(name, q, composite.output, leaky_slope(composite))


def _table_name(composite: Composite) -> str:
    if composite.name != "elu":
        return composite.name
    input_scale, alpha, scale = (float(constant_value(call.args[1])) for call in composite.calls("relax.multiply"))
    return tables.elu_name(alpha, scale, input_scale)


def leaky_slope(composite: Composite) -> float:
    """Returns the negative slope of a leaky_relu; 0 for other operators."""
    return float(composite.call("relax.nn.leakyrelu").attrs.alpha) if composite.has("relax.nn.leakyrelu") else 0.0


def clamp_limits(composite: Composite) -> tuple[int, int]:
    """Returns the least and greatest integer that a relu or clip with unchanged parameters lets through."""
    q = composite.output
    if composite.name == "relu":
        return max(q.zero_point, q.quant_min), q.quant_max
    low, high = (float(getattr(limit, "value", limit)) for limit in composite.call("relax.clip").args[1:3])
    low_q, high_q = (int(v) for v in numerics.quantize_val(np.array((low, high), np.float32), q))
    return low_q, high_q
