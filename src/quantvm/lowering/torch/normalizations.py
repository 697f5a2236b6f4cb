"""Lowerings of batch and layer normalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantvm.kernels.elementwise import normalization
from quantvm.lowering.tensors import Tensor
from quantvm.numerics.normalization import batch_norm_params
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, quant_params

from .legalize import Legalization, legalizes


@legalizes("batch_norm2d")
def lower_batch_norm2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """X * factor + term for each channel (+ relu); PyTorch returns it channels-last."""
    q = quant_params(composite.call("relax.dequantize"))
    factors, terms = (constant_value(composite.call(op).args[1]).reshape(-1) for op in ("relax.multiply", "relax.add"))
    alpha, beta = batch_norm_params(factors, terms, q, composite.output)
    x = replace(state.nhwc(inputs[0]), channels_last=True)
    kernel = normalization.batch_norm(
        x.item_shape, alpha, beta, q, composite.output, relu=composite.has("relax.nn.relu")
    )
    return state.run(kernel, [x], x, composite.output.dtype, name)


@legalizes("layer_norm")
def lower_layer_norm(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """(row - mean) / deviation * gamma + beta for each row; PyTorch returns it contiguous."""
    call = composite.call("relax.nn.layer_norm")
    gamma, beta = (np.asarray(constant_value(argument)) for argument in call.args[1:3])
    q = quant_params(composite.call("relax.dequantize"))
    x = replace(state.logical(inputs[0]), channels_last=False)
    kernel = normalization.layer_norm(x.item_shape, gamma, beta, float(call.attrs.epsilon), q, composite.output)
    return state.run(kernel, [x], x, composite.output.dtype, name)
