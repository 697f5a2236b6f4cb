"""LiteRT as the reference for TFLite files: which of its kernels follow the definition of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.errors import ModelImportError
from quantvm.numerics.tflite import quotients
from quantvm.numerics.torch_engines import QuantParams
from quantvm.storage.regular_files import open_regular

UNDEFINED_QUOTIENT = (
    "LiteRT's DIV of these scales shifts by more bits than its integers have where a quotient is below half a step"
)


def needs_optimized_kernels(path: str | Path) -> bool:
    """Returns whether a file has an operator whose reference kernel in LiteRT does not follow the definition.

    The reference kernel of SUM reads int8 as uint8, and that of LOCAL_RESPONSE_NORMALIZATION leaves out the last
    channel of its window. The optimized kernels do neither.
    """
    import tflite

    kinds = tflite.BuiltinOperator
    return any(
        code == kinds.LOCAL_RESPONSE_NORMALIZATION
        or (code == kinds.SUM and tensors[0].Type() == tflite.TensorType.INT8)
        for code, tensors, _ in _operators(path)
    )


def is_defined(path: str | Path) -> bool:
    """Returns whether LiteRT's kernels compute defined results for the whole file (see `numerics.tflite.quotients`)."""
    import tflite

    for code, tensors, values in _operators(path):
        parameters = [found for found in map(_parameters, tensors) if found is not None]
        if code != tflite.BuiltinOperator.DIV or len(parameters) < 3:
            continue
        q, divisor_q, out_q = parameters
        _, defined = quotients(q, divisor_q, out_q, out_q.quant_min, out_q.quant_max)
        divisors = values[1]
        used = slice(None) if divisors is None else divisors.view(divisor_q.dtype).astype(int) - divisor_q.quant_min
        if not defined[:, used].all():
            return False
    return True


def _operators(path: str | Path) -> Iterator[tuple[int, list[Any], list[np.ndarray | None]]]:
    """Yields for each operator its code, its inputs and outputs, and the bytes of constant ones."""
    import tflite

    from quantvm.frontend.tflite.model import operators_of

    with open_regular(path, ModelImportError) as file:
        model = tflite.Model.GetRootAsModel(file.read(), 0)
    graph = model.Subgraphs(0)
    for code, operator in operators_of(model):
        places = [operator.Inputs(i) for i in range(operator.InputsLength())]
        places += [operator.Outputs(i) for i in range(operator.OutputsLength())]
        tensors = [graph.Tensors(place) for place in places if place >= 0]
        held = [model.Buffers(tensor.Buffer()) for tensor in tensors]
        values = [buffer.DataAsNumpy() if buffer.DataLength() else None for buffer in held]
        yield code, tensors, values


def _parameters(tensor: Any) -> QuantParams | None:
    """Returns the parameters of int8 or uint8 with one scale."""
    import tflite

    found, kinds = tensor.Quantization(), tflite.TensorType
    if tensor.Type() not in (kinds.INT8, kinds.UINT8) or found is None or found.ScaleLength() != 1:
        return None
    zero_point = int(found.ZeroPoint(0)) if found.ZeroPointLength() else 0
    return QuantParams(float(found.Scale(0)), zero_point, "int8" if tensor.Type() == kinds.INT8 else "uint8")
