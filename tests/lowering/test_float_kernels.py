from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from quantvm.lowering import LoweringOptions, lower
from quantvm.tvm_compat import build_executable, native_target, start_vm


def _module(build, *shapes):
    """Returns a module whose first dimensions are symbolic."""
    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    params = [relax.Var(f"x{i}", relax.TensorType([n, *shape], "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(build(builder, *params))
        builder.emit_func_output(out)
    return builder.get()


def _weight(builder, constant):
    return constant


def _transposed(builder, constant):
    return builder.emit(relax.op.permute_dims(relax.const(constant.value.numpy().T.copy()), [1, 0]))


@pytest.mark.parametrize("weight_of", [_weight, _transposed])
def test_products_with_constants_are_kernels(weight_of):
    w = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    module = _module(lambda b, x: relax.op.matmul(x, weight_of(b, relax.const(w))), (7, 12))
    _check(module, [(3, 7, 12)], lambda x: x @ w, "float_linear_f32")


def test_dequantized_weights_are_packed_as_floats():
    rng = np.random.default_rng(1)
    w, scales = rng.integers(-128, 128, (40, 12)).astype(np.int8), rng.random(40).astype(np.float32)

    def build(b, x):
        zeros = relax.const(np.zeros(40, np.int8))
        real = b.emit(relax.op.dequantize(relax.const(w), relax.const(scales), zeros, axis=0))
        return relax.op.matmul(x, b.emit(relax.op.permute_dims(real, [1, 0])))

    _check(_module(build, (12,)), [(5, 12)], lambda x: x @ (w * scales[:, None]).T, "float_linear_f32")


def test_batched_products_are_kernels():
    module = _module(lambda b, x, y: relax.op.matmul(x, y), (4, 9, 8), (4, 8, 21))
    _check(module, [(2, 4, 9, 8), (2, 4, 8, 21)], lambda x, y: x @ y, "float_matmul_f32")


def test_a_broadcast_product_is_left_to_tvm():
    module = _module(lambda b, x, y: relax.op.matmul(x, y), (4, 9, 8), (1, 8, 21))
    _check(module, [(2, 4, 9, 8), (2, 1, 8, 21)], lambda x, y: x @ y, "matmul")


@pytest.mark.parametrize(
    ("left", "right"), [([12], [12, 40]), ([7, 12], [12]), ([7, 12], [12, 40]), ([12], [12])], ids=str
)
def test_products_of_vectors_and_of_static_matrices_are_left_to_tvm(left, right):
    x, y = (relax.Var(name, relax.TensorType(sizes, "float32")) for name, sizes in (("x", left), ("y", right)))
    _check(_static(relax.op.matmul(x, y), x, y), [left, right], lambda x, y: x @ y, "matmul")


def test_weights_that_are_computed_are_no_constants():
    x, w = relax.Var("x", relax.TensorType([7, 12], "float32")), relax.Var("w", relax.TensorType([12, 40], "int8"))
    real = relax.op.dequantize(w, relax.const(np.float32(0.5)), relax.const(np.int8(3)))
    _, report = lower(_static(relax.op.matmul(x, real), x, w), LoweringOptions(native_target()))
    assert not any(call.function.startswith("float_") for call in report.calls)


def _static(result, *params):
    builder = relax.BlockBuilder()
    with builder.function("main", list(params)):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(result))
        builder.emit_func_output(out)
    return builder.get()


def _check(module, shapes, expected_of, name):
    lowered, report = lower(module, LoweringOptions(native_target()))
    assert report.float_macs > 0
    assert any(call.function.startswith(name) for call in report.calls)
    vm = start_vm(build_executable(lowered, native_target()))
    rng = np.random.default_rng(2)
    xs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    got = vm["main"](*(tvm.runtime.tensor(x) for x in xs)).numpy()
    np.testing.assert_allclose(got, expected_of(*(x.astype(np.float64) for x in xs)), rtol=1e-4, atol=1e-3)
