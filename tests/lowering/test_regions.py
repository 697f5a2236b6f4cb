"""Which operators become one kernel, and whether a contraction computes the others: QDQ written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from quantvm.lowering.qdq.regions import contraction_of, dequantized_params, find_regions
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import op_name
from tests.lowering.test_patterns import Qdq, module_of

op = relax.op
IMAGE = (2, 16, 6, 6)


def constant(*shape: int) -> Any:
    return relax.const(np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape))


def conv(q: Qdq, x: Any, outputs: int = 16, groups: int = 1, real: Any = None) -> Any:
    real = q.dequantized(x) if real is None else real
    return q.emit(op.nn.conv2d(real, q.weight(outputs, 16 // groups, 1, 1), groups=groups))


def regions(body: Any, *shapes: tuple[int, ...], **options: Any) -> list[tuple[list[str], str, Any]]:
    """Returns each region in the order of its root: its operators, its host's and its axis."""
    main = module_of(body, *shapes)["main"]
    bound = definitions(main)
    found = find_regions(main, **options)

    def name(var: Any) -> str:
        return op_name(bound[var]).removeprefix("relax.").removeprefix("nn.")

    distinct = sorted(dict.fromkeys(found.values()), key=lambda region: list(bound).index(region.root))
    return [
        (
            [name(var) for var in bound if var in region.members],
            "" if region.host is None else name(region.host),
            region.axis,
        )
        for region in distinct
    ]


def test_a_convolution_computes_all_that_follows_it():
    def body(q, x):
        y = q.emit(op.add(conv(q, x), constant(1, 16, 1, 1)))
        return q.quantized(q.emit(op.nn.relu(y)))

    assert regions(body, IMAGE) == [(["conv2d", "add", "relu", "quantize"], "conv2d", "channels")]


@pytest.mark.parametrize(
    ("outputs", "groups", "takes"), [(16, 1, True), (24, 1, False), (32, 1, True), (16, 16, False), (16, 2, False)]
)
def test_which_convolutions_add_another_tensor(outputs, groups, takes):
    def body(q, x, other):
        return q.quantized(q.emit(op.add(conv(q, x, outputs, groups), q.dequantized(other))))

    found = regions(body, IMAGE, (2, outputs, 6, 6))
    if takes:
        assert found == [(["conv2d", "add", "quantize"], "conv2d", "channels")]
    else:
        assert found == [(["conv2d"], "conv2d", "channels"), (["add", "quantize"], "", "channels")]


def test_a_linear_layer_adds_another_tensor():
    def body(q, x, other):
        weight = q.emit(op.permute_dims(q.weight(32, 16), [1, 0]))
        return q.quantized(q.emit(op.add(q.emit(op.matmul(q.dequantized(x), weight)), q.dequantized(other))))

    assert regions(body, (4, 16), (4, 32)) == [(["matmul", "add", "quantize"], "matmul", "last")]


def test_of_two_convolutions_the_last_is_the_host():
    def body(q, x):
        real = q.dequantized(x)
        first, second = conv(q, x, real=real), conv(q, x, real=real)
        return q.quantized(q.emit(op.add(q.emit(op.nn.relu(first)), second)))

    assert regions(body, IMAGE) == [
        (["conv2d", "relu"], "conv2d", "channels"), (["conv2d", "add", "quantize"], "conv2d", "channels"),
    ]  # fmt: skip


def test_a_gate_is_computed_once_and_not_by_the_convolution():
    def body(q, x, gate):
        return q.quantized(q.emit(op.multiply(conv(q, x), q.dequantized(gate))))

    assert regions(body, IMAGE, (2, 16, 1, 1)) == [
        (["conv2d"], "conv2d", "channels"), (["multiply", "quantize"], "", "channels"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "other"),
    [(IMAGE, (2, 16, 1, 6)), (IMAGE, (2, 1, 6, 6)), (IMAGE, (1, 16, 6, 6)), ((2, 16, 6), (2, 16, 1)), ((16,), (1,))],
)
def test_what_is_repeated_in_another_way_stays_outside(shape, other):
    def body(q, x, y):
        return q.quantized(q.emit(op.add(q.dequantized(x), q.dequantized(y))))

    assert regions(body, shape, other) == [(["quantize"], "", None)]


@pytest.mark.parametrize(
    ("shape", "of_constant", "axis"),
    [
        (IMAGE, (1, 16, 1, 1), "channels"), (IMAGE, (16, 1, 1), "channels"), (IMAGE, (6,), "last"), (IMAGE, (1,), None),
        (IMAGE, (), None), ((2, 16), (16,), "last"), ((2, 16, 6), (6,), "last"),
    ],
)  # fmt: skip
def test_axes_of_constants(shape, of_constant, axis):
    def body(q, x):
        return q.quantized(q.emit(op.add(q.dequantized(x), constant(*of_constant))))

    assert regions(body, shape) == [(["add", "quantize"], "", axis)]


@pytest.mark.parametrize(("shape", "of_constant"), [(IMAGE, (6, 1)), (IMAGE, (16, 6, 1)), ((2, 16, 6), (16, 1))])
def test_constants_along_other_axes_stay_outside(shape, of_constant):
    def body(q, x):
        return q.quantized(q.emit(op.add(q.dequantized(x), constant(*of_constant))))

    assert regions(body, shape) == [(["quantize"], "", None)]


def test_a_quantization_along_an_axis_stays_outside():
    def body(q, x):
        scales, zeros = relax.const(np.full(16, 0.1, np.float32)), relax.const(np.zeros(16, np.uint8))
        return q.emit(op.quantize(q.emit(op.nn.relu(q.dequantized(x))), scales, zeros, axis=1, out_dtype="uint8"))

    assert regions(body, IMAGE) == [(["relu"], "", None)]


def test_constants_of_both_axes_are_two_regions():
    def body(q, x):
        y = q.emit(op.add(q.dequantized(x), constant(16, 1, 1)))
        return q.quantized(q.emit(op.multiply(y, constant(6))))

    assert regions(body, IMAGE) == [(["add"], "", "channels"), (["multiply", "quantize"], "", "last")]


def test_a_value_with_two_readers_is_a_region_of_its_own():
    def body(q, x):
        y = q.emit(op.nn.relu(q.dequantized(x)))
        return relax.Tuple([q.quantized(y), q.quantized(q.emit(op.negative(y)), 0.1)])

    assert regions(body, IMAGE) == [
        (["relu"], "", None),
        (["quantize"], "", None),
        (["negative", "quantize"], "", None),
    ]


def test_quantization_in_between_is_part_of_the_kernel_if_only_rounded():
    def body(params):
        def inner(q, x):
            y = q.quantized(q.emit(op.nn.relu(q.dequantized(x))), 0.2, 7)
            return q.quantized(q.emit(op.negative(q.dequantized(y, *params))), 0.1, 3)

        return inner

    whole = (["relu", "quantize", "dequantize", "negative", "quantize"], "", None)
    assert regions(body((0.2, 7)), IMAGE) == [whole]
    apart = [(["relu", "quantize"], "", None), (["negative", "quantize"], "", None)]
    assert regions(body((0.2, 8)), IMAGE) == apart
    assert regions(body((0.3, 7)), IMAGE) == apart


def test_a_limit_belongs_to_its_quantization():
    def body(q, x):
        return q.emit(op.clip(q.quantized(q.emit(op.nn.relu(q.dequantized(x)))), 3, 200))

    assert regions(body, IMAGE) == [(["relu", "quantize", "clip"], "", None)]


def test_requantizations_are_apart_if_asked():
    def body(q, x):
        y = q.quantized(q.emit(op.nn.relu(q.dequantized(x))), 0.2, 7)
        return q.quantized(q.dequantized(y, 0.2, 7), 0.1, 3)

    assert regions(body, IMAGE) == [(["relu", "quantize", "dequantize", "quantize"], "", None)]
    assert regions(body, IMAGE, requantizes_apart=True) == [(["relu", "quantize"], "", None), (["quantize"], "", None)]


# ------------------------------------------------------------------ contractions and their activations


def contraction(body: Any, *shapes: tuple[int, ...]) -> Any:
    bound = definitions(module_of(body, *shapes)["main"])
    return contraction_of(list(bound.values())[-1], bound)


def matmul(axes: Any, shape: tuple[int, ...] = (32, 16), axis: int = 0, scales: int = 32) -> Any:
    def body(q, x):
        values = relax.const(np.ones(shape, np.int8))
        weight = q.dequantized(values, np.full(scales, 0.1, "float32"), np.zeros(scales, "int8"), axis)
        weight = weight if axes is None else q.emit(op.permute_dims(weight, axes))
        return op.matmul(q.dequantized(x), weight)

    return contraction(body, (4, 16))


def test_matrix_products():
    assert matmul([1, 0]).transposed
    assert matmul([1, 0], axis=-2).transposed
    assert not matmul(None, (16, 32), axis=1).transposed
    assert not matmul(None, (16, 32), axis=-1).transposed
    assert matmul([1, 0], axis=1, scales=16) is None  # scales along the sum
    assert matmul(None, (16, 32), axis=0, scales=16) is None
    assert matmul([0, 1], (16, 32), axis=0, scales=16) is None


def test_convolutions():
    def of(layout: str, axis: int = 0, dtype: str = "int8") -> Any:
        shape = (2, 16, 6, 6) if layout == "NCHW" else (2, 6, 6, 16)
        kernel = (16, 16, 1, 1) if layout == "NCHW" else (16, 1, 1, 16)

        def body(q, x):
            values = relax.const(np.ones(kernel, dtype))
            weight = q.dequantized(values, np.full(16, 0.1, "float32"), np.zeros(16, dtype), axis)
            kernel_layout = "OIHW" if layout == "NCHW" else "OHWI"
            return op.nn.conv2d(q.dequantized(x), weight, data_layout=layout, kernel_layout=kernel_layout)

        return contraction(body, shape)

    found = of("NCHW")
    assert (found.kind, found.transposed) == ("conv2d", True)
    assert of("NCHW", axis=-4) is not None
    assert of("NCHW", axis=1) is None
    assert of("NHWC") is None
    assert of("NCHW", dtype="int32") is None


def test_what_is_moved_keeps_its_quantization():
    def params(body: Any) -> Any:
        main = module_of(body, IMAGE, IMAGE)["main"]
        bound = definitions(main)
        return dequantized_params(list(bound)[-1], bound)

    def of(q: Any) -> tuple[float, int]:
        return round(q.scale, 3), q.zero_point

    assert of(params(lambda q, a, b: op.reshape(q.dequantized(a), (2, 16, 36)))) == (0.05, 100)
    assert of(params(lambda q, a, b: op.nn.max_pool2d(q.dequantized(a), (2, 2)))) == (0.05, 100)
    assert params(lambda q, a, b: op.nn.relu(q.dequantized(a))) is None
    together = params(lambda q, a, b: op.concat([q.dequantized(a), q.dequantized(b)], 1))
    assert of(together) == (0.05, 100)
    assert params(lambda q, a, b: op.concat([q.dequantized(a), q.dequantized(b, 0.1)], 1)) is None
    assert params(lambda q, a, b: op.concat([q.dequantized(a), q.emit(op.nn.relu(q.dequantized(b)))], 1)) is None
