"""Plans of random networks, drawn such that hypothesis can shrink them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import torch

from quantvm.choices import ENGINES, Engine

from .random_network import BUILDERS, Plan, Step

KERNELS = [(3, 3), (1, 1), (2, 2), (5, 5), (1, 3), (3, 1), (7, 7)]
CHANNELS = [1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 32, 33, 40]
NUMBERS = [0.5, -1.3, 2.0, 0.1, -0.25, 3.0]
_Shape = tuple[int, int, int]


def _scheme(draw: Any, engine: Engine) -> str:
    """Draws how a weight is quantized; oneDNN takes no zero points, nor does x86 where it hands over to oneDNN."""
    schemes = ["per channel", "per tensor", "per channel", "per tensor asymmetric"]
    return draw(st.sampled_from(schemes[:2] if engine == "onednn" else schemes))


def _conv2d_step(draw: Any, engine: Engine, at: int, shape: _Shape) -> tuple[Step, _Shape] | None:
    c, h, w = shape
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
    spans = {k: tuple((e - 1) * d + 1 for e, d in zip(k, dilation, strict=True)) for k in KERNELS}
    kernel = draw(st.sampled_from([k for k, (rows, columns) in spans.items() if rows <= h + 2 and columns <= w + 2]))
    span = spans[kernel]
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 2)]))
    if draw(st.booleans()):
        padding = tuple((s - 1) // 2 for s in span)
    else:
        padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    height, width = ((size + 2 * p - s) // t + 1 for size, p, s, t in zip((h, w), padding, span, stride, strict=True))
    if height < 1 or width < 1:
        return None
    reads_beyond = (kernel, stride, padding) == ((1, 3), (1, 2), (0, 1)) and w <= 2  # oneDNN, beyond its tensors
    if engine in ("onednn", "x86") and reads_beyond:
        return None
    if engine in ("onednn", "x86") and _has_columns_of_padding(w, width, kernel[1], stride[1], padding[1], dilation[1]):
        return None
    grouping = draw(st.sampled_from(["dense", "depthwise", "doubled depthwise", "grouped"]))
    groups, channels = 1, draw(st.sampled_from(CHANNELS))
    if grouping == "depthwise":
        groups, channels = c, c
    elif grouping == "doubled depthwise":
        groups, channels = c, 2 * c
    elif grouping == "grouped":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 8) if c % g == 0]))
        channels = groups * draw(st.sampled_from([1, 2, 3, 8, 16, 17]))
    options = {
        "channels": channels, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation,
        "groups": groups, "bias": draw(st.booleans()), "relu": draw(st.booleans()),
        "scheme": _scheme(draw, engine),
    }  # fmt: skip
    return Step("conv2d", (at,), options), (channels, height, width)


def _has_columns_of_padding(
    in_width: int, out_width: int, kernel: int, stride: int, padding: int, dilation: int
) -> bool:
    """Whether windows lie beside the image: there oneDNN reads beyond its tensors on CPUs with VNNI and without AMX."""
    return not all(
        any(0 <= column * stride + tap * dilation - padding < in_width for tap in range(kernel))
        for column in range(out_width)
    )


def _pool_step(draw: Any, engine: Engine, at: int, shape: _Shape, op: str) -> tuple[Step, _Shape] | None:
    kernels = [(2, 2), (3, 3), (3, 2), (1, 1)]
    kernel = draw(
        st.sampled_from(kernels[:3] if engine == "qnnpack" else kernels)
    )  # QNNPACK refuses pools of one pixel
    options = {
        "kernel_size": kernel, "stride": draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel), "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    if op == "avg_pool2d":
        options["count_include_pad"] = draw(st.booleans())
    else:
        options["dilation"] = draw(st.sampled_from([1, 1, 2]))
    found = _checked(op, at, shape, options)
    # of images of one pixel PyTorch returns a larger output in scrambled order, see docs/numerics.md
    return None if found is not None and shape[1:] == (1, 1) != found[1][1:] else found


def _checked(op: str, at: int, shape: _Shape, options: dict[str, Any]) -> tuple[Step, _Shape] | None:
    """Lets PyTorch say whether the operator takes such an input, and what comes out."""
    try:
        y = BUILDERS[op](None, [], options)(torch.zeros(1, *shape))
    except RuntimeError:
        return None
    return (Step(op, (at,), options), tuple(y.shape[1:])) if y.numel() else None


def _simple_step(draw: Any, op: str, at: int, shape: _Shape) -> tuple[Step, _Shape] | None:
    c, h, w = shape
    if op == "adaptive_avg_pool2d":
        size = draw(st.sampled_from([(1, 1), (2, 2), (3, 1)]))
        return (Step(op, (at,), {"output_size": size}), (c, *size)) if h > 1 or w > 1 or size == (1, 1) else None
    if op == "mean":
        dims = draw(st.sampled_from([[2, 3], [2, 3], [1], [2], [3], [1, 2], [1, 3], [1, 2, 3], [-1, -2]]))
        return _checked(op, at, shape, {"dim": dims, "keepdim": True})
    if op == "view":
        kinds = ["rows", "every second column", "transposition", "every second channel"]
        return _checked(op, at, shape, {"kind": draw(st.sampled_from(kinds))})
    if op == "interpolate":
        if (h, w) == (1, 1):  # PyTorch returns it in scrambled order, as larger pools of one pixel
            return None
        size = draw(st.sampled_from([{"scale_factor": 2.0}, {"scale_factor": 1.7}, {"size": (5, 3)}, {"size": (h, 4)}]))
        bilinear = {"mode": "bilinear", "align_corners": draw(st.booleans())}
        options = {**size, **draw(st.sampled_from([bilinear, {"mode": "nearest"}]))}
        found = _checked(op, at, shape, options)
        return found if found is not None and max(found[1][1:]) <= 22 else None
    if op == "elu":
        return Step(op, (at,), {"alpha": draw(st.sampled_from([1.0, 0.7]))}), shape
    if op == "prelu":
        return Step(op, (at,), {"by_channel": draw(st.booleans())}), shape
    if op == "normalization":
        return Step(op, (at,), {"name": draw(st.sampled_from(["layer_norm", "batch_norm"]))}), shape
    if op == "pad":
        left, right, top, bottom = (draw(st.integers(0, 2)) for _ in range(4))
        return _checked(op, at, shape, {"pad": [left, right, top, bottom]})
    if op == "shuffle":
        return (Step(op, (at,), {"groups": 2}), shape) if c % 2 == 0 else None
    if op == "half":
        return (Step(op, (at,), {"index": draw(st.integers(0, 1))}), (c // 2, h, w)) if c % 2 == 0 else None
    if op == "with_number":
        name = draw(st.sampled_from(["add_scalar", "mul_scalar", "mul_scalar_relu"]))
        return Step(op, (at,), {"name": name, "number": draw(st.sampled_from(NUMBERS))}), shape
    options = {"slope": draw(st.sampled_from([0.01, 0.3]))} if op == "leaky_relu" else {}
    options = {"min_val": -0.5, "max_val": 0.75} if op == "hardtanh" else options
    return Step(op, (at,), options), shape


def _joining_step(draw: Any, op: str, at: int, shapes: list[_Shape]) -> tuple[Step, _Shape] | None:
    c = shapes[at][0]
    if op == "cat":
        dim = draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2, -3]))
        axis = dim - 1 if dim > 0 else dim + 3  # of one image
        partners = [i for i, s in enumerate(shapes) if _without(s, axis) == _without(shapes[at], axis)]
        others = draw(st.lists(st.sampled_from(partners), min_size=1, max_size=2))
        inputs = tuple(draw(st.permutations([at, *others])))
        shape = list(shapes[at])
        shape[axis] = sum(shapes[i][axis] for i in inputs)
        options = {"dim": dim, "same_params": draw(st.booleans())}
        return (Step("cat", inputs, options), tuple(shape)) if shape[axis] <= 96 else None
    name = draw(st.sampled_from(["add", "add_relu", "mul", "mul_relu"]))
    fitting = [i for i, s in enumerate(shapes) if s == shapes[at] or (name[:3] == "mul" and s == (c, 1, 1))]
    inputs = draw(st.permutations([at, draw(st.sampled_from(fitting))]))
    return Step("arithmetic", tuple(inputs), {"name": name}), shapes[at]


def _without(shape: _Shape, axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _linear_step(draw: Any, engine: Engine, at: int) -> Step:
    options = {
        "features": draw(st.sampled_from([1, 10, 16, 35])), "bias": draw(st.booleans()), "relu": draw(st.booleans()),
        "scheme": _scheme(draw, engine),
    }  # fmt: skip
    return Step("linear", (at,), options)


_KINDS = (
    *("conv2d",) * 8, "arithmetic", "arithmetic", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "mean", "hardswish", "hardsigmoid", "leaky_relu", "relu", "relu6", "hardtanh", "pad", "shuffle", "half",
    "sigmoid", "scaled_sigmoid", "tanh", "with_number", "view", "view", "interpolate", "elu", "prelu", "normalization",
)  # fmt: skip

_KINDS_OF_QNNPACK = tuple(kind for kind in _KINDS if kind != "scaled_sigmoid")  # refused but for a scale of 1/256


@st.composite
def plans(draw: Any, max_steps: int = 7, engines: Sequence[Engine] = ENGINES) -> Plan:
    """Draws an engine and a network of at most `max_steps` operators, each of which may take any earlier value."""
    engine = draw(st.sampled_from(engines))
    first = (draw(st.sampled_from(CHANNELS)), draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    shapes: list[_Shape] = [first]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, max_steps))):
        op = draw(st.sampled_from(_KINDS_OF_QNNPACK if engine == "qnnpack" else _KINDS))
        # later values first: networks are deep rather than wide
        at = len(shapes) - 1 - draw(st.sampled_from([0, 0, 0, min(1, len(shapes) - 1), min(3, len(shapes) - 1)]))
        if op == "conv2d":
            found = _conv2d_step(draw, engine, at, shapes[at])
        elif op in ("max_pool2d", "avg_pool2d"):
            found = _pool_step(draw, engine, at, shapes[at], op)
        elif op in ("cat", "arithmetic"):
            found = _joining_step(draw, op, at, shapes)
        else:
            found = _simple_step(draw, op, at, shapes[at])
        if found is not None:
            steps.append(found[0])
            shapes.append(found[1])
    if draw(st.booleans()) or not steps:
        steps.append(_linear_step(draw, engine, len(shapes) - 1))
    return Plan(
        first, tuple(steps), draw(st.integers(0, 2**16)), draw(st.sampled_from([False, False, True])), engine,
        channels_last=draw(st.booleans()),
    )  # fmt: skip
