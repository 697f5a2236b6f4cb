"""ONNX files through `quantvm.compile`, against ONNX Runtime without fusions: one model a theme, one output a case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quantvm
from quantvm.compiler import compile as compile_model

from .onnx_graphs import Graph, onnx_runtime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")


def integers(*shape: int, seed: int = 0, dtype: Any = np.int8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min + 8, limits.max - 8, shape).astype(dtype)


def inputs(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(graph: Graph, *xs: np.ndarray, exact: bool = True, **options: Any) -> Any:
    """Compiles and compares: equal bits, or, of sums of floats, equal but for single steps."""
    model = graph.model()
    artifact = compile_model(model, cache=False, **options)
    for x in xs:
        found = artifact(x)
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        expected = onnx_runtime(model, x)
        assert len(found) == len(expected)
        for name, a, b in zip(graph.outputs, map(np.asarray, found), expected, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            if exact:
                np.testing.assert_array_equal(a, b, err_msg=name)
            else:
                assert np.mean(np.abs(a - b) < 1e-5) >= 0.99, name
                assert np.abs(a - b).max() < 0.06, name  # a step at most
    return artifact


def test_float_weights_that_are_quantized_in_the_graph():
    """As ONNX Runtime's AddQDQPairToWeight and exporters of quantization-aware training write them."""
    g = Graph(["N", 4, 6, 6])
    rng = np.random.default_rng(0)
    w = g.constant(rng.normal(0, 0.4, (8, 4, 3, 3)), np.float32)
    scales = np.linspace(0.003, 0.011, 8)
    x = g.qdq("x")
    per_channel = g.qdq(w, scales, np.zeros(8), np.int8, axis=0)
    with_zero_points = g.qdq(w, scales, np.arange(8) + 100, np.uint8, axis=0)
    bias = g.qdq(g.constant(rng.normal(0, 1, 8), np.float32), 0.01, 0, np.int8)
    for weight in (per_channel, with_zero_points, g.qdq(w, 0.007, 3, np.int8)):
        g.output(g.qdq(g.op("Conv", x, weight, bias, pads=[1, 1, 1, 1]), 0.05, 120))
    rows = g.op("Flatten", x)
    matrix = g.constant(rng.normal(0, 0.4, (5, 144)), np.float32)
    g.output(g.qdq(g.op("Gemm", rows, g.qdq(matrix, np.full(5, 0.008), np.zeros(5), np.int8, axis=0), transB=1), 0.09))
    turned = g.op("Transpose", matrix, perm=[1, 0])
    g.output(g.qdq(g.op("MatMul", rows, g.qdq(turned, np.full(5, 0.006), np.zeros(5), np.int8, axis=1)), 0.09))
    twice = g.op("Transpose", g.qdq(turned, 0.006, 0, np.int8), perm=[1, 0])
    g.output(g.qdq(g.op("MatMul", rows, g.op("Transpose", twice, perm=[1, 0])), 0.09))
    stored = g.op("Transpose", g.weight(integers(5, 144), axis=0), perm=[1, 0])
    g.output(g.qdq(g.op("MatMul", rows, stored), 0.4))
    reshaped = g.op("Reshape", g.weight(integers(8, 36), axis=0), g.constant([8, 4, 3, 3], np.int64))
    g.output(g.qdq(g.op("Conv", x, reshaped, pads=[1, 1, 1, 1]), 0.3, 120))
    artifact = check(g, inputs(3, 4, 6, 6), inputs(1, 4, 6, 6), exact=False)
    assert artifact.report.int8_mac_share == 1.0


def test_quantized_constants_are_saturated_and_rounded_to_even():
    g = Graph([1, 6])
    values = np.array([0.5, 1.5, 2.5, -0.5, 1e12, -1e12], np.float32)
    x = g.qdq("x")
    for dtype, zero_point in ((np.int8, 0), (np.int8, -3), (np.uint8, 128)):
        g.output(g.op("Mul", x, g.qdq(g.constant(values), 1.0, zero_point, dtype)))
    scalar = g.qdq(g.constant(0.35, np.float32), 0.35 / 255, 0)
    g.output(
        g.qdq(g.op("Mul", x, scalar), 0.02), g.op("Add", x, g.qdq(g.constant([0.7], np.float32), 0.01, 0, np.int8))
    )
    no_zero_point = g.constant(0.01, np.float32)
    stored = g.op("QuantizeLinear", g.constant(np.abs(values)), no_zero_point)
    g.output(g.op("Add", x, g.op("DequantizeLinear", stored, no_zero_point)))
    check(g, inputs(1, 6))


def test_parameters_behind_identities_and_constant_nodes():
    g = Graph(["N", 5])
    scale = g.op("Identity", g.op("Constant", value_float=0.03))
    zero_point = g.op("Cast", g.op("Constant", value_int=17), to=onnx.TensorProto.UINT8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", "x", scale, zero_point), scale, zero_point)
    scales = g.op("Mul", g.op("Constant", value_floats=[0.5, 1.0, 2.0]), g.constant(0.01, np.float32))
    weight = g.op("DequantizeLinear", g.constant(integers(5, 3)), scales, axis=1)
    g.output(g.op("MatMul", x, weight))
    assert check(g, inputs(2, 5), exact=False).report.int8_mac_share == 1.0


def test_padding_tiles_and_limits():
    g = Graph(["N", 4, 6, 5])
    x = g.qdq("x", zero_point=17)

    def pads(*widths: int) -> str:
        return g.constant(widths, np.int64)

    for mode in ("constant", "reflect", "edge"):
        g.output(g.qdq(g.op("Pad", x, pads(0, 0, 1, 2, 0, 0, 2, 1), mode=mode), zero_point=17))
        g.output(g.op("Pad", "x", pads(0, 0, 0, 2, 0, 1, 2, 0), mode=mode))
    value = g.constant(0.4, np.float32)
    g.output(g.qdq(g.op("Pad", x, pads(0, 1, 1, 0, 0, 0, 0, 2), value)), g.op("Pad", x, pads(0, 0, -1, 2, 0, 0, 1, -1)))
    weight = g.weight(integers(8, 4, 3, 3))
    padded = g.qdq(g.op("Pad", x, pads(0, 0, 1, 1, 0, 0, 1, 1)), zero_point=17)
    g.output(g.qdq(g.op("Conv", padded, weight), 0.4, 128))
    for repeats in ((1, 1, 2, 1), (1, 3, 1, 2), (2, 1, 1, 1)):
        g.output(g.qdq(g.op("Tile", x, g.constant(repeats, np.int64)), zero_point=17))
    low, high = g.constant(-0.3, np.float32), g.constant(0.9, np.float32)
    g.output(g.op("Clip", x, low, high), g.op("Clip", x, "", high), g.op("Clip", x, low), g.op("Clip", x, high, low))

    for reverse in (0, 1):
        g.output(g.op("CumSum", x, g.constant(2, np.int64), reverse=reverse, exclusive=reverse))
    check(g, inputs(2, 4, 6, 5))


@pytest.mark.parametrize("opset", [11, 17])
def test_automatic_padding_of_convolutions(opset: int):
    g = Graph(["N", 4, 7, 6], opset)
    x = g.qdq("x", zero_point=17)
    weight = g.weight(integers(8, 4, 3, 2)) if opset > 12 else g.weight(integers(8, 4, 3, 2), axis=None)
    transposed = g.weight(integers(4, 8, 3, 2), axis=None)
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for options in ({}, {"strides": [2, 1]}, {"strides": [2, 3]}):
            g.output(g.qdq(g.op("Conv", x, weight, auto_pad=mode, **options), 0.31, 120))
        g.output(g.qdq(g.op("ConvTranspose", x, transposed, auto_pad=mode, strides=[2, 2]), 0.31, 120))
    g.output(g.qdq(g.op("ConvTranspose", x, transposed, strides=[2, 2], output_shape=[14, 12]), 0.31, 120))
    check(g, inputs(2, 4, 7, 6), exact=False)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_has_the_bits_of_onnx_runtime(mode: str):
    """0.05 and averages of few integers: nearly every second element would be a tie if it were rounded otherwise."""
    g = Graph(["N", 3, 5, 6], 18)
    x = g.qdq("x", 0.05, 128)
    targets = [{"scales": (1, 1, 2, 2)}, {"scales": (1, 1, 1.7, 0.6)}, {"sizes": (3, 11)}, {"scales": (1, 1, 3, 1)}]
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    for index, target in enumerate(targets):
        for at, coordinates in enumerate(modes):
            options = {"mode": mode, "coordinate_transformation_mode": coordinates}
            if mode == "nearest":
                options["nearest_mode"] = ["round_prefer_floor", "floor", "ceil", "round_prefer_ceil"][(index + at) % 4]
            if "scales" in target:
                resized = g.op("Resize", x, "", g.constant(target["scales"], np.float32), **options)
            else:
                resized = g.op("Resize", x, "", "", g.constant(target["sizes"], np.int64), axes=[2, 3], **options)
            g.output(g.qdq(resized, 0.05, 128), resized)
    check(g, inputs(2, 3, 5, 6))


def test_shapes_that_the_graph_computes():
    g = Graph(["N", 4, 6])
    x = g.qdq("x")
    shape = g.op("Shape", x)
    batch = g.op("Gather", shape, g.constant([0], np.int64))
    rows = g.op("Reshape", x, g.op("Concat", batch, g.constant([24], np.int64), axis=0))
    g.output(g.qdq(g.op("MatMul", g.qdq(rows), g.weight(integers(24, 5), axis=1)), 0.3))
    size = g.op("Slice", shape, g.constant([1], np.int64), g.constant([3], np.int64))
    g.output(g.op("Reshape", x, g.op("Concat", g.constant([-1], np.int64), g.op("ReduceProd", size), axis=0)))
    image = g.op("Unsqueeze", x, g.constant([1], np.int64))
    doubled = g.op("Mul", size, g.constant([2], np.int64))
    sizes = g.op(
        "Concat", g.op("Slice", g.op("Shape", image), *(g.constant([v], np.int64) for v in (0, 2))), doubled, axis=0
    )
    g.output(g.op("Resize", image, "", "", sizes, mode="nearest"))
    check(g, inputs(3, 4, 6), inputs(1, 4, 6))


def test_the_batch_is_moved_and_merged_and_inputs_have_the_names_of_the_file():
    g = Graph(["N", 3, 8])
    x = g.qdq("x")
    turned = g.op("Transpose", x, perm=[1, 0, 2])
    y = g.qdq(g.op("MatMul", turned, g.weight(integers(8, 5), axis=1)), 0.3)
    g.output(g.op("Transpose", y, perm=[1, 2, 0]), g.qdq(g.op("Relu", y)))
    rows = g.op("Reshape", x, g.constant([-1, 8], np.int64))
    z = g.qdq(g.op("MatMul", rows, g.weight(integers(8, 6, seed=1), axis=1)), 0.3)
    g.output(g.qdq(g.op("Sigmoid", g.op("Reshape", z, g.constant([-1, 3, 6], np.int64)))))
    artifact = check(g, *(inputs(n, 3, 8) for n in (1, 2, 3, 5)), exact=False)
    assert artifact.report.int8_mac_share == 1.0
    for a, b in zip(artifact(x=inputs(2, 3, 8)), artifact({"x": inputs(2, 3, 8)}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_examples_fix_the_sizes_of_images():
    g = Graph(["N", 4, "H", "W"])
    weight = g.weight(integers(8, 4, 3, 3))
    g.output(g.qdq(g.op("Conv", g.qdq("x"), weight, auto_pad="SAME_UPPER", strides=[2, 2]), 0.3, 120))
    with pytest.raises(quantvm.QuantvmError, match=r"dimension 2 of input 0 \(x\) is dynamic: .*give example_inputs"):
        compile_model(g.model(), cache=False)
    check(g, inputs(3, 4, 7, 6), inputs(2, 4, 7, 6), exact=False, example_inputs=[inputs(2, 4, 7, 6)])


def test_sequences_of_any_length():
    g = Graph(["N", "T", 8])
    x = g.qdq("x")
    g.output(g.qdq(g.op("MatMul", x, g.weight(integers(8, 5), axis=1)), 0.3), g.qdq(g.op("Relu", x)))
    check(g, inputs(3, 7, 8), inputs(2, 5, 8))
    check(g, inputs(2, 7, 8), example_inputs=[inputs(2, 7, 8)], batch="static")


def test_a_branch_whose_condition_is_constant():
    from onnx import TensorProto, helper

    g = Graph(["N", 4, 6, 6])
    x = g.qdq("x")
    branches = [
        helper.make_graph([helper.make_node(op, [x], [f"{op}_o"])], op,
                          [], [helper.make_tensor_value_info(f"{op}_o", TensorProto.FLOAT, None)])
        for op in ("Relu", "Neg")
    ]  # fmt: skip
    for condition in (True, False):
        taken = g.op("If", g.constant(condition), then_branch=branches[0], else_branch=branches[1])
        g.output(g.qdq(taken))
    check(g, inputs(2, 4, 6, 6))


def test_gemm_with_factors():
    g = Graph(["N", 12])
    x = g.qdq("x")
    c = g.constant(np.linspace(-1, 1, 5), np.float32)
    for options in ({"alpha": 0.5}, {"alpha": 1.25, "beta": 0.5}, {"beta": 0.0}, {"transB": 1, "beta": 2.0}):
        shape = (5, 12) if "transB" in options else (12, 5)
        g.output(g.qdq(g.op("Gemm", x, g.weight(integers(*shape), axis=shape.index(5)), c, **options), 0.2))
    assert check(g, inputs(3, 12), exact=False).report.int8_mac_share == 1.0


def test_pools_of_any_padding():
    g = Graph(["N", 4, 8, 6], 19)
    x = g.qdq("x")
    windows = [
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 1], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1},  # the last column is dropped
        {"kernel_shape": [2, 2], "dilations": [2, 3]},
    ]
    for window in windows:
        g.output(g.qdq(g.op("MaxPool", x, **window)), g.op("MaxPool", "x", **window))
        for counted in (0, 1):
            g.output(g.op("AveragePool", x, count_include_pad=counted, **window))
    check(g, inputs(2, 4, 8, 6), exact=False)


def test_operators_whose_form_is_changed_at_import():
    g = Graph(["N", 5, 12], 18)
    x = g.qdq("x", 0.05, 128)
    vector = g.weight(integers(12), axis=None)
    g.output(g.qdq(g.op("MatMul", x, vector), 0.3), g.qdq(g.op("MatMul", g.weight(integers(5), axis=None), x), 0.3))
    g.output(g.qdq(g.op("Einsum", x, g.weight(integers(12, 7), axis=None), equation="nij, jk -> nik"), 0.3))
    g.output(g.op("Celu", x, alpha=0.7))
    peak = g.op("ReduceMax", x, g.constant([1], np.int64))
    g.output(g.op("Expand", peak, g.constant([3, 1], np.int64)), g.op("Expand", peak, g.op("Shape", x)))
    volume = g.op("Reshape", x, g.constant([-1, 1, 5, 4, 3], np.int64))
    grown = g.op("Resize", volume, "", g.constant([1, 1, 2, 1.5, 2], np.float32), mode="linear")
    image = g.op("Reshape", x, g.constant([-1, 5, 6, 2], np.int64))  # channels come last
    g.output(
        g.qdq(grown, 0.05, 128), grown, g.op("Resize", image, "", g.constant([1, 2, 2, 1], np.float32), mode="linear")
    )
    check(g, inputs(3, 5, 12), exact=False)


def test_products_differ_from_onnx_runtime_at_ties_alone():
    """Scales of few digits put many results half-way between two steps, where ONNX Runtime's float error decides."""
    g = Graph(["N", 8])
    weight, scales = integers(5, 8), np.array([0.01, 0.02, 0.03, 0.04, 0.05], np.float32)
    turned = g.op("Transpose", g.weight(weight, scales=scales), perm=[1, 0])
    g.output(g.qdq(g.op("MatMul", g.qdq("x", 0.05, 128), turned), 0.3, 128))
    x = inputs(64, 8)
    found, (expected,) = np.asarray(compile_model(g.model(), cache=False)(x)), onnx_runtime(g.model(), x)
    steps = np.clip(np.rint(x / np.float32(0.05)), -128, 127)
    exact = (
        (steps @ weight.T) * (np.float64(np.float32(0.05)) * scales.astype(np.float64)) / np.float64(np.float32(0.3))
    )
    is_tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    assert is_tie.mean() > 0.005
    np.testing.assert_array_equal(found[~is_tie], expected[~is_tie])
    assert np.abs(found - expected).max() < 0.31


@pytest.mark.parametrize("opset", [11, 19, 23])
def test_every_version_of_the_operators(opset: int):
    """Zero points that are left out are uint8 0; biases are int32."""
    g = Graph(["N", 3, 8, 8], opset)
    scale = g.constant(0.03, np.float32)
    q = g.op("QuantizeLinear", "x", scale)
    x = g.op("DequantizeLinear", q, scale)
    weight = g.weight(integers(8, 3, 3, 3), axis=None if opset < 13 else 0)
    bias = g.op("DequantizeLinear", g.constant(np.arange(8) * 400, np.int32), g.constant(3e-4, np.float32))
    y = g.op(
        "Clip",
        g.op("Conv", x, weight, bias, pads=[1, 1, 1, 1]),
        g.constant(0.0, np.float32),
        g.constant(6.0, np.float32),
    )
    z = g.qdq(y, 6 / 255, 0)
    g.output(g.qdq(g.op("Softmax", g.op("GlobalAveragePool", z), axis=1), 1 / 256, 0), z)
    check(g, inputs(2, 3, 8, 8), exact=False)


def test_what_cannot_be_imported_names_the_node():
    cases: list[tuple[Any, str]] = []
    g = Graph(["N", 4, 6, 6])
    g.output(g.op("Det", g.qdq("x")))
    cases.append((g, r"Det x1 \(first: node_det2\)"))
    g = Graph(["N", 4, 6, 6])
    x = g.qdq("x")
    g.output(g.op("Pad", x, g.op("Cast", g.op("ReduceMax", x, axes=[0, 2, 3], keepdims=0), to=onnx.TensorProto.INT64)))
    cases.append((g, "Pad at node_pad4: its pads are computed at run time"))
    g = Graph(["N", 4, 6, 6])
    g.output(g.op("Reshape", g.qdq("x"), g.constant([5, 7], np.int64)))
    cases.append((g, "Reshape at node_reshape2|cannot be"))
    g = Graph(["N", 4, 6, 6], 18)
    g.output(g.op("Resize", g.qdq("x"), "", g.constant([1, 1, 0.5, 0.5], np.float32), mode="linear", antialias=1))
    cases.append((g, "Resize at node_resize2: antialias=1 is not supported"))
    g = Graph(["N", 4, 6, 6])
    g.nodes.append(onnx.helper.make_node("Conv", [g.qdq("x"), "missing"], ["y"], name="node_y"))
    g.output("y")
    cases.append((g, "Conv at node_y reads missing"))
    for graph, message in cases:
        with pytest.raises(quantvm.QuantvmError, match=message):
            compile_model(graph.model(), cache=False)
