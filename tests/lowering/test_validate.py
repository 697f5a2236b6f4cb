"""Imported programs that no kernel may be made of are refused before anything is done with them."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from quantvm.errors import CompileError
from quantvm.lowering.validate import validate


def constant(value, dtype: str):
    return relax.const(np.asarray(value, dtype), dtype)


def program(build, shape=(2, 6, 8, 8), dtype: str = "float32"):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(build(x), "made"))
        builder.emit_func_output(out)
    return builder.get()


WEIGHT = constant(np.ones((4, 6, 3, 3)), "float32")
Q = relax.op.quantize
FAULTS = [
    (lambda x: relax.op.nn.conv2d(x, WEIGHT, padding=(-1, 0, -1, 0)), "padding .*-1.* at least 0"),
    (lambda x: relax.op.nn.conv2d(x, WEIGHT, strides=(1, 1), dilation=(4, 1)), r"windows of \(9, 3\) pixels"),
    (lambda x: relax.op.nn.max_pool2d(x, (2, 2), padding=(2, 0, 0, 0)), r"padding \(2, 0, 0, 0\) around windows"),
    (lambda x: relax.op.nn.avg_pool2d(x, (9, 2)), r"windows of \(9, 2\) pixels"),
    (lambda x: Q(x, constant(0.0, "float32"), constant(0, "int8"), out_dtype="int8"), "the scale 0.0"),
    (lambda x: Q(x, constant(np.nan, "float32"), constant(0, "int8"), out_dtype="int8"), "the scale nan"),
    (lambda x: relax.op.take(x, constant([0, 6], "int64"), axis=1), "takes place 6 of 6"),
    (lambda x: relax.op.take(x, constant([-7], "int64"), axis=1), "takes place -7 of 6"),
    (lambda x: relax.op.gather_nd(x, constant([[1, 6]], "int64")), "takes place 6 of 6"),
    (lambda x: relax.op.take(relax.op.reshape(x, (768,)), constant([768], "int64")), "takes place 768 of 768"),
    (lambda x: relax.op.gather_nd(x, constant([[[[0, 5]], [[1, 6]]]], "int64")), "takes place 6 of 6"),
    (lambda x: relax.op.gather_nd(x, constant([[6, 8]], "int64"), batch_dims=1), "takes place 6 of 6"),
    (
        lambda x: relax.op.gather_elements(x, constant(np.full((2, 6, 8, 1), -9), "int64"), axis=3),
        "takes place -9 of 8",
    ),
    (lambda x: Q(x, constant(1, "float32"), constant(0, "int8"), out_dtype="uint8"), "zero points of int8.* uint8"),
    (
        lambda x: relax.op.dequantize(relax.op.astype(x, "uint8"), constant(1, "float32"), constant(0, "int8")),
        "zero points of int8.* uint8",
    ),
    (lambda x: relax.op.broadcast_to(relax.op.reshape(x, (768, 1)), (768, 1 << 30)), "elements are more than"),
]


@pytest.mark.parametrize(("build", "message"), FAULTS)
def test_refused(build, message: str):
    with pytest.raises(CompileError, match=rf"cannot be compiled: .* at made .*{message}"):
        validate(program(build))


def test_inputs_that_are_too_large():
    with pytest.raises(CompileError, match="the input x has the shape"):
        validate(program(lambda x: relax.op.negative(x), shape=(1 << 20, 1 << 12)))


@pytest.mark.parametrize(
    "build",
    [
        lambda x: relax.op.nn.conv2d(x, WEIGHT, padding=(1, 0, 3, 9)),
        lambda x: relax.op.nn.max_pool2d(x, (2, 2), padding=(1, 1, 1, 1)),
        lambda x: relax.op.nn.avg_pool2d(x, (9, 10), strides=(3, 3), ceil_mode=True),
        lambda x: relax.op.take(x, constant([0, 5, 5], "int64"), axis=1),
        lambda x: relax.op.take(relax.op.reshape(x, (768,)), constant([767, -768], "int64")),
        lambda x: relax.op.gather_nd(x, constant([[[[1, 5]], [[0, -6]]]], "int64")),
        lambda x: relax.op.gather_nd(x, constant([[5, 7], [0, 7]], "int64"), batch_dims=1),
        lambda x: Q(x, constant(np.ones(8), "float32"), constant(np.zeros(8), "int8"), axis=-1, out_dtype="int8"),
        lambda x: relax.op.dequantize(relax.op.astype(x, "uint8"), constant(1, "float32"), constant(0, "uint8")),
        lambda x: relax.op.strided_slice(x, [1], [0], [0]),  # without elements
    ],
)
def test_taken(build):
    validate(program(build))
