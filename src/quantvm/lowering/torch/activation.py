"""The tables and limits that a unary composite computes on integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantvm.numerics import dispatch
from quantvm.numerics import unary_tables as tables
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.float_operators import FUSED
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import quantize_val
from quantvm.qdq.activations import find
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import quant_params


def unary_tables(pytorch: PyTorch, composite: Composite, known: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (256,) outputs for all input integers, by PyTorch's vector code and by its scalar tails.

    Args:
        pytorch: the PyTorch whose bits are reproduced.
        composite: one of `ACTIVATIONS`.
        known: tables that PyTorch computed, by `table_key`, as hexadecimal digits.
    """
    q, name, options = quant_params(composite.call("relax.dequantize")), composite.name, options_of(composite)
    digits = known.get(tables.table_key(name, options, q, composite.output))
    if digits is not None:
        main, tail = np.frombuffer(bytes.fromhex(digits), composite.output.dtype).reshape(2, 256)
        return main, tail
    if dispatch.unary_is_qnnpacks(pytorch, name, q.dtype):
        entries = tables.qnnpack_table(name, q, composite.output)
        return entries, entries
    return tables.unary_tables(name, q, composite.output, options)


def options_of(composite: Composite) -> tuple[float, ...]:
    """Returns the numeric arguments of an activation."""
    found = find(ACTIVATIONS[composite.name], composite.call("relax.quantize").args[0], composite.resolve)
    assert found is not None  # its pattern was matched
    return found.options


def clamp_limits(composite: Composite) -> tuple[int, int]:
    """Returns the least and greatest integer that a relu or clip lets pass, if it keeps the parameters."""
    q = composite.output
    if composite.name == "relu":
        return max(q.zero_point, q.quant_min), q.quant_max
    limits = FUSED["relax.clip"].options(composite.call("relax.clip"))
    low_q, high_q = (int(v) for v in quantize_val(np.array(limits, np.float32), q))
    return low_q, high_q
