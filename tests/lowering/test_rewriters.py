"""Passes over `main`, before and after: the whole module is compared, not counts of operators."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, tirx, topi
from tvm.ir import assert_structural_equal
from tvm.relax.transform import CanonicalizeBindings, DeadCodeElimination

from quantvm.frontend.layer_graphs import with_layers
from quantvm.frontend.qdq_form import in_qdq_form
from quantvm.frontend.tflite.channels_first import channels_first
from quantvm.kernels.float.float_matmul import Tile
from quantvm.lowering.channel_affine import merge_channel_affines
from quantvm.lowering.float.float_kernels import call_float_kernels
from quantvm.lowering.owned_outputs import copy_shared_outputs
from quantvm.lowering.run_time_checks import add_run_time_checks
from quantvm.qdq.expressions import is_call
from quantvm.qdq.rewriting import built_main
from quantvm.qdq.verify import verify

N = tirx.Var("n", "int64")


def var(name, *shape, dtype="float32"):
    return relax.Var(name, relax.TensorType(shape, dtype))


def check(after: tvm.IRModule, expected: tvm.IRModule, phase: str) -> None:
    """Compares two modules but for other names of the same variable, and for what nothing reads."""
    verify(after, phase)
    tidy = tvm.transform.Sequential([CanonicalizeBindings(), DeadCodeElimination()])
    assert_structural_equal(tidy(after), tidy(expected), map_free_vars=True)


def test_outputs_that_are_views_are_copied():
    x, c = var("x", N, 4), relax.const(np.ones(3, "float32"))

    def outputs(b, copied):
        own = b.emit_te(topi.exp, x)
        view = b.emit(relax.op.reshape(x, relax.ShapeExpr([N, 2, 2])))
        return relax.Tuple([own, *map(copied, (x, view, c)), b.emit(relax.op.reshape(own, relax.ShapeExpr([N * 4])))])

    before = built_main([x], lambda b: outputs(b, lambda expr: expr))

    def expected(b):
        own = b.emit_te(topi.exp, x)
        view = b.emit(relax.op.reshape(x, relax.ShapeExpr([N, 2, 2])))
        flat = b.emit(relax.op.reshape(own, relax.ShapeExpr([N * 4])))
        copies = [b.emit_te(topi.identity, expr, primfunc_name_hint="copy") for expr in (x, view, c)]
        return relax.Tuple([own, *copies, flat])

    check(copy_shared_outputs(before), built_main([x], expected), "owned_outputs")


def test_outputs_that_are_the_callers_stay():
    x = var("x", N, 4)
    before = built_main([x], lambda b: b.emit_te(topi.exp, x))
    assert copy_shared_outputs(before).same_as(before)


def test_computed_places_are_checked():
    x, places = var("x", 5, 4), var("places", N, dtype="int64")
    before = built_main([x, places], lambda b: b.emit(relax.op.take(x, places, axis=0)))
    after = add_run_time_checks(before)

    def expected(b):
        target = b.add_func(after["checked"], "checked")
        checked = b.emit(relax.call_tir(target, [places, tirx.IntImm("int64", 5)], places.ty))
        return b.emit(relax.op.take(x, checked, axis=0))

    check(after, built_main([x, places], expected), "run_time_checks")
    assert "takes a place outside of (5)" in after["checked"].script()


def test_places_that_are_known_are_not_checked():
    x, places = var("x", 5, 4), relax.const(np.array([0, 4]))
    before = built_main([x], lambda b: b.emit(relax.op.take(x, places, axis=0)))
    assert add_run_time_checks(before).same_as(before)


def test_products_with_a_constant_become_kernels():
    x, w = var("x", N, 7, 12), relax.const(np.random.default_rng(0).standard_normal((12, 40)).astype("float32"))
    before = built_main([x], lambda b: b.emit(relax.op.matmul(b.emit(relax.op.nn.relu(x)), w)))
    after = call_float_kernels(before, Tile(4, 2))
    ((target, kernel),) = [(v, f) for v, f in after.functions.items() if v.name_hint != "main"]
    (packed,) = [b.value.args[1].fields[1] for b in after["main"].body.blocks[0].bindings
                 if is_call(b.value, "relax.call_tir")]  # fmt: skip

    def expected(b):
        rows = b.emit(relax.op.reshape(b.emit(relax.op.nn.relu(x)), relax.ShapeExpr([N * 7, 12])))
        out = relax.TensorType([N * 7, 40], "float32")
        y = b.emit(relax.call_tir(b.add_func(kernel, target.name_hint), [rows, packed], out))
        return b.emit(relax.op.reshape(y, relax.ShapeExpr([N, 7, 40])))

    check(after, built_main([x], expected), "run_time_checks")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_channels_that_are_scaled_apart_are_scaled_together(order):
    x = var("x", N, 3, 4, 4)
    factors, terms = np.float32([2, 3, 4]), np.float32([0.5, 0.25, 0.125])

    def apart(b):
        parts = []
        for c in order:
            channel = b.emit(relax.op.strided_slice(x, [1], [c], [c + 1]))
            scaled = b.emit(relax.op.multiply(channel, relax.const(factors[c])))
            parts.append(b.emit(relax.op.add(scaled, relax.const(terms[c]))))
        return b.emit(relax.op.concat(parts, 1))

    def together(b):
        factor, term = (relax.const(v.reshape(1, 3, 1, 1)) for v in (factors, terms))
        return b.emit(relax.op.add(b.emit(relax.op.multiply(x, factor)), term))

    before = built_main([x], apart)
    after = merge_channel_affines(before)
    if order == (0, 1, 2):
        check(after, built_main([x], together), "channel_affine")
    else:
        assert after.same_as(before)


def test_images_of_files_are_turned_to_channels_first():
    x = var("x", 1, 8, 8, 3)

    def pooled(b, image, layout):
        y = b.emit(relax.op.nn.max_pool2d(image, [2, 2], [2, 2], layout=layout))
        return b.emit(relax.op.nn.relu(y))

    before = built_main([x], lambda b: pooled(b, x, "NHWC"))

    def expected(b):
        first = b.emit(relax.op.permute_dims(x, [0, 3, 1, 2]))
        return b.emit(relax.op.permute_dims(pooled(b, first, "NCHW"), [0, 2, 3, 1]))

    check(channels_first(before), built_main([x], expected), "imported")


def test_imports_of_tvm_are_brought_into_qdq_form():
    """Two uses of a quantized tensor have a dequantize each; weights are (N, K), and biases come last."""
    x = var("x", 2, 4)
    w, bias = np.arange(12, dtype=np.int8).reshape(4, 3), relax.const(np.float32([1, 2, 3]))
    scale, zero = relax.const(np.float32(0.5)), relax.const(np.uint8(7))
    w_scales, w_zeros = relax.const(np.float32([1, 2, 3])), relax.const(np.int8([0, 0, 0]))

    def before(b):
        real = b.emit(relax.op.dequantize(b.emit(relax.op.quantize(x, scale, zero, out_dtype="uint8")), scale, zero))
        weight = b.emit(relax.op.dequantize(relax.const(w), w_scales, w_zeros, axis=1))
        y = b.emit(relax.op.add(bias, b.emit(relax.op.matmul(real, weight))))
        return relax.Tuple([y, b.emit(relax.op.nn.relu(real))])

    def expected(b):
        q = b.emit(relax.op.quantize(x, scale, zero, out_dtype="uint8"))
        first = b.emit(relax.op.dequantize(q, scale, zero))
        weight = b.emit(relax.op.dequantize(relax.const(np.ascontiguousarray(w.T)), w_scales, w_zeros, axis=0))
        product = b.emit(relax.op.matmul(first, b.emit(relax.op.permute_dims(weight, [1, 0]))))
        y = b.emit(relax.op.add(product, bias))
        return relax.Tuple([y, b.emit(relax.op.nn.relu(b.emit(relax.op.dequantize(q, scale, zero))))])

    check(in_qdq_form(built_main([x], before), ["fc"]), built_main([x], expected), "imported")


def test_layers_are_returned_beside_the_outputs():
    x = var("x", 2, 4)
    scale, zero = relax.const(np.float32(0.5)), relax.const(np.uint8(7))
    layers = []

    def body(b, *, returned):
        q = b.emit(relax.op.quantize(x, scale, zero, out_dtype="uint8"))
        layers.append(q)
        y = b.emit(relax.op.dequantize(q, scale, zero))
        return relax.Tuple([y, q]) if returned else y

    before = built_main([x], lambda b: body(b, returned=False))
    expected = built_main([x], lambda b: body(b, returned=True))
    check(with_layers(before, [layers[0]]), expected, "imported")
