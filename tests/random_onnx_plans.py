"""Plans of random ONNX graphs, drawn such that hypothesis can shrink them."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st

from .random_module_plans import CHANNELS, MOST_ELEMENTS
from .random_network import Step
from .random_onnx import BIAS_FORMS, WEIGHT_FORMS, Graph, OnnxPlan, add_step

_Shape = tuple[int, ...]
OPSETS = (13, 15, 17, 19, 21)
LEFT_OUT: frozenset[str] = frozenset()
"""What quantvm does not compute yet."""
UNARY = (
    "Relu", "Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Softmax", "Identity", "Neg",
    "Abs", "Erf", "Sqrt", "Exp", "Gelu", "Flatten",
)  # fmt: skip
KINDS = (
    *("Conv",) * 6, "ConvTranspose", *("Gemm",) * 2, *("MatMul",) * 2, "join", "join", "constant", "constant",
    *("unary",) * 3, "Clip", "norm", "PRelu", "reduce", "pool", "pool", "pool", "Pad", "Tile", "Resize", "Slice",
    "Split", "Concat", "Concat", "Transpose", "Reshape", "Unsqueeze", "Squeeze",
)  # fmt: skip


def _kept(*names: str) -> list[str]:
    return [name for name in names if name not in LEFT_OUT]


def _padding(draw: Any, kernel: tuple[int, int], uneven: str = "uneven") -> dict[str, Any]:
    kind = draw(st.sampled_from(_kept("none", "equal", uneven, "SAME_UPPER", "SAME_LOWER", "VALID")))
    if kind == "none":
        return {}
    if kind == "equal":
        return {"pads": [(k - 1) // 2 for k in kernel] * 2}
    if kind == uneven:
        return {"pads": [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]}
    return {"auto_pad": kind}


def _kernel(draw: Any) -> tuple[int, int]:
    return draw(st.sampled_from([(3, 3), (1, 1), (2, 2), (5, 5), (1, 3), (3, 2)]))


def _conv(draw: Any, shape: _Shape) -> dict[str, Any]:
    c, kernel = shape[0], _kernel(draw)
    grouping = draw(st.sampled_from(["dense", "dense", "depthwise", "grouped"]))
    groups, channels = 1, draw(st.sampled_from(CHANNELS))
    if grouping == "depthwise":
        groups, channels = c, c * draw(st.sampled_from([1, 1, 2]))
    elif grouping == "grouped":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if c % g == 0]))
        channels = groups * draw(st.sampled_from([1, 2, 5]))
    options = {
        "channels": channels, "kernel": kernel, "groups": groups, "weight": draw(st.sampled_from(_kept(*WEIGHT_FORMS))),
        "bias": draw(st.sampled_from(BIAS_FORMS)), **_padding(draw, kernel),
        "strides": draw(st.sampled_from([[1, 1], [1, 1], [2, 2], [1, 2]])),
    }  # fmt: skip
    if draw(st.integers(0, 3)) == 3 and "auto_pad" not in options:
        options["dilations"] = [2, draw(st.integers(1, 2))]
    return options


def _pool(draw: Any, shape: _Shape) -> dict[str, Any]:
    name = draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]))
    if name.startswith("Global"):
        return {"name": name}
    # ONNX Runtime takes greater ones, too, and makes outputs of windows that lie half outside.
    fitting = [k for k in [(2, 2), (3, 3), (3, 2), (1, 1)] if k[0] <= shape[1] and k[1] <= shape[2]]
    kernel = draw(st.sampled_from(fitting))
    options = {
        "name": name, "kernel_shape": kernel, "strides": draw(st.sampled_from([[1, 1], [2, 2], [2, 1]])),
        **_padding(draw, kernel, "uneven pool"),
    }  # fmt: skip
    options["ceil_mode"] = draw(st.integers(0, 1))
    if name == "AveragePool":
        options["count_include_pad"] = draw(st.integers(0, 1))
    return options


def _slice(draw: Any, shape: _Shape) -> dict[str, Any]:
    axis = draw(st.integers(1, len(shape)))
    start = draw(st.integers(0, shape[axis - 1] - 1))
    end = draw(st.sampled_from([shape[axis - 1], 2**31 - 1, start + 1]))
    return {"starts": [start], "ends": [end], "axes": [axis], "steps": [draw(st.sampled_from([1, 1, 2]))]}


def _options(draw: Any, op: str, shape: _Shape) -> tuple[str, dict[str, Any]] | None:
    """Draws the builder and the options of an operator of one input; None where it takes no such shape."""
    rank = len(shape) + 1
    if op in ("Conv", "ConvTranspose", "pool", "Resize") and rank != 4:
        return None
    if op in ("Gemm", "MatMul"):
        if op == "Gemm" and rank != 2:
            return None
        options = {
            "features": draw(st.sampled_from([1, 5, 8, 16])), "weight": draw(st.sampled_from(_kept(*WEIGHT_FORMS))),
            "bias": draw(st.sampled_from(BIAS_FORMS)),
        }  # fmt: skip
        if op == "MatMul":
            return op, options
        scales = [1.0, 1.0, 0.5]
        return op, options | {
            "transB": draw(st.integers(0, 1)), "alpha": draw(st.sampled_from(scales)),
            "beta": draw(st.sampled_from(scales)),
        }  # fmt: skip
    if op == "pool":
        return "plain", _pool(draw, shape)
    if op == "unary":
        return "plain", {"name": draw(st.sampled_from(UNARY))}
    if op == "Transpose":
        return "plain", {"name": op, "perm": [0, *draw(st.permutations(range(1, rank)))]}
    if op == "Split":
        axis = draw(st.integers(1, rank - 1))
        first = draw(st.integers(1, max(1, shape[axis - 1] - 1)))
        sizes = [first, shape[axis - 1] - first]
        return (op, {"axis": axis, "sizes": sizes, "index": draw(st.integers(0, 1))}) if sizes[1] else None
    made = {
        "Conv": lambda: _conv(draw, shape),
        "ConvTranspose": lambda: {
            "channels": draw(st.sampled_from([1, 3, 8])), "kernel": _kernel(draw),
            "strides": draw(st.sampled_from([[1, 1], [2, 2]])),
        },
        "constant": lambda: {
            "name": draw(st.sampled_from(["Add", "Mul", "Sub", "Div", "Max", "Min", "Pow"])),
            "shape": draw(st.sampled_from(["scalar", "channels", "last"])), "first": draw(st.booleans()),
            "constant_quantized": draw(st.sampled_from(_kept("plain", "constant_quantized"))) == "constant_quantized",
        },
        "Clip": lambda: {"limits": draw(st.sampled_from([(0.0, 6.0), (-0.5, 0.75), (None, 0.5), (0.0, None)]))},
        "norm": lambda: {"name": draw(st.sampled_from(["LayerNormalization", "BatchNormalization"]))},
        "PRelu": dict,
        "reduce": lambda: {
            "name": draw(st.sampled_from(["ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum"])),
            "axes": draw(st.sampled_from([[2, 3], [-1], [1], [-1, -2]])), "keepdims": draw(st.booleans()),
        },
        "Pad": lambda: {
            "pads": [0, *_few(draw, rank - 1), 0, *_few(draw, rank - 1)],
            "value": draw(st.sampled_from([0.0, 0.0, 0.3])),
            "mode": draw(st.sampled_from(["constant", "constant", "edge", "reflect"])),
        },
        "Tile": lambda: {"repeats": [1, *(draw(st.integers(1, 2)) for _ in shape)]},
        "Resize": lambda: _resize(draw),
        "Slice": lambda: _slice(draw, shape),
        "Reshape": lambda: {
            "shape": draw(st.sampled_from([[0, -1], [0, shape[0], -1], [0, 2, -1], [0, 1, -1, shape[0]]]))
        },
        "Unsqueeze": lambda: {"axes": [draw(st.integers(1, rank))]},
        "Squeeze": lambda: {"axes": [draw(st.integers(1, rank - 1))]},
    }  # fmt: skip
    return op, made[op]()


def _few(draw: Any, count: int) -> list[int]:
    return [draw(st.sampled_from([0, 0, 1, 2])) for _ in range(count)]


def _resize(draw: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "mode": draw(st.sampled_from(["nearest", "linear"])),
        "scales": draw(st.sampled_from([[2.0, 2.0], [1.5, 2.0], [0.5, 0.5]])),
        "coordinate_transformation_mode": draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners"])),
    }  # fmt: skip
    if options["mode"] == "nearest":
        options["nearest_mode"] = draw(st.sampled_from(["round_prefer_floor", "floor"]))
    return options


def _joined(draw: Any, op: str, at: int, shapes: list[_Shape]) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """Draws an operator of several values."""
    equal = [i for i, s in enumerate(shapes) if s == shapes[at]]
    if op == "Concat":
        inputs = (at, *draw(st.lists(st.sampled_from(equal), min_size=1, max_size=2)))
        return "plain", inputs, {"name": op, "axis": draw(st.integers(1, len(shapes[at])))}
    gates = [i for i, s in enumerate(shapes) if len(s) == 3 == len(shapes[at]) and s == (shapes[at][0], 1, 1)]
    inputs = tuple(draw(st.permutations([at, draw(st.sampled_from(equal + gates))])))
    return "plain", inputs, {"name": draw(st.sampled_from(["Add", "Add", "Mul", "Sub", "MatMul"]))}


_PARAMETERS = st.one_of(
    st.tuples(st.just("uint8"), st.sampled_from([0.0213, 2.0**-5, 0.05]), st.sampled_from([0, 128, 117, 255])),
    st.tuples(st.just("int8"), st.sampled_from([0.0213, 2.0**-5, 0.05]), st.sampled_from([0, 0, -128, 11, 127])),
)


@st.composite
def onnx_plans(draw: Any, opset: int, max_steps: int = 6, kinds: tuple[str, ...] = KINDS) -> OnnxPlan:
    """Draws a graph of at most `max_steps` operators, each of which may take any earlier value."""
    side = st.integers(1, 9)
    rank = draw(st.sampled_from([4, 4, 4, 3, 2]))
    first: _Shape = (draw(st.sampled_from(CHANNELS)),)
    if rank > 2:
        first = (*first, draw(side), draw(side)) if rank == 4 else (draw(side), *first)
    graph = Graph(opset)
    values, shapes = [graph.input(first)], [first]
    steps: list[Step] = []
    _try(graph, Step("plain", (0,), {"name": "Identity", "quantized": draw(_PARAMETERS)}), values, shapes, steps)
    for _ in range(draw(st.integers(1, max_steps))):
        op = draw(st.sampled_from(_kept(*kinds)))
        at = len(shapes) - 1 - draw(st.sampled_from([0, 0, 0, min(1, len(shapes) - 1), min(3, len(shapes) - 1)]))
        quantized = {"quantized": draw(st.one_of(st.none(), _PARAMETERS, _PARAMETERS, _PARAMETERS))}
        if op in ("Concat", "join"):
            name, inputs, options = _joined(draw, op, at, shapes)
            _try(graph, Step(name, inputs, options | quantized), values, shapes, steps)
        elif (found := _options(draw, op, shapes[at])) is not None:
            _try(graph, Step(found[0], (at,), found[1] | quantized), values, shapes, steps)
    read = {i for step in steps for i in step.inputs}
    return OnnxPlan(
        first, tuple(steps), tuple(i for i in range(1, len(shapes)) if i not in read), draw(st.integers(0, 2**16))
    )


def _try(graph: Graph, step: Step, values: list[str], shapes: list[_Shape], steps: list[Step]) -> None:
    """Adds a step if it takes such inputs."""
    try:
        value = add_step(graph, step, values, 0)
        shape = graph.shape(value)
    except ValueError:
        return
    if 1 <= len(shape) <= 4 and min(shape) > 0 and math.prod(shape) <= MOST_ELEMENTS:
        values.append(value)
        shapes.append(shape)
        steps.append(step)
