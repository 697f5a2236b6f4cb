"""A quantize with a scale for each channel becomes a chain of operators with its constants."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from quantvm.lowering.qdq.axis_quantize import has_known_axis, quantized_along_axis
from quantvm.qdq.bindings import bindings_of
from quantvm.qdq.expressions import constant_value, op_name

SCALES, ZEROS = np.array([0.1, 0.3, 7.0], np.float32), np.array([-3, 0, 127], np.int8)


def quantize(x: relax.Var, axis: int) -> relax.Call:
    return relax.op.quantize(x, relax.const(SCALES), relax.const(ZEROS), axis=axis, out_dtype="int8")


@pytest.mark.parametrize(("axis", "shape"), [(1, (1, 3, 1, 1)), (-1, (1, 1, 1, 3)), (-3, (1, 3, 1, 1))])
@pytest.mark.parametrize("divides", [False, True])
def test_the_chain(axis, shape, divides):
    x = relax.Var("x", relax.TensorType([2, 3, 5, 3], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = quantized_along_axis(builder, x, quantize(x, axis), divides=divides, name="q")
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    chain = [binding.value for binding in bindings_of(builder.get()["main"])][:5]
    assert [op_name(value) for value in chain] == [
        f"relax.{name}" for name in ("divide" if divides else "multiply", "round", "add", "clip", "astype")
    ]
    factors, terms = constant_value(chain[0].args[1]), constant_value(chain[2].args[1])
    assert factors.shape == terms.shape == shape
    np.testing.assert_array_equal(factors.reshape(-1), SCALES if divides else np.float32(1) / SCALES)
    assert terms.reshape(-1).tolist() == [-3, 0, 127]
    assert [int(limit.value) for limit in chain[3].args[1:3]] == [-128, 127]
    assert str(chain[4].attrs.dtype) == "int8"


def test_which_quantizations_have_a_known_axis():
    x = relax.Var("x", relax.TensorType([2, 3], "float32"))
    scale = relax.Var("scale", relax.TensorType([3], "float32"))
    assert has_known_axis(quantize(x, 1))
    assert not has_known_axis(relax.op.quantize(x, scale, relax.const(ZEROS), axis=1, out_dtype="int8"))
    zeros = relax.Var("zeros", relax.TensorType([3], "int8"))
    assert not has_known_axis(relax.op.quantize(x, relax.const(SCALES), zeros, axis=1, out_dtype="int8"))
    one = relax.const(np.float32(0.1)), relax.const(np.int8(0))
    assert not has_known_axis(relax.op.quantize(x, *one, axis=1, out_dtype="int8"))
