"""Plans of random float modules, drawn such that hypothesis can shrink them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import torch

from .random_modules import ACTIVATIONS, BUILDERS, ModulePlan
from .random_network import Step

_Shape = tuple[int, ...]
"""Of a value, without the batch."""

KERNELS = [(3, 3), (1, 1), (2, 2), (5, 5), (1, 3), (3, 1)]
CHANNELS = [1, 2, 3, 4, 6, 8, 12, 16, 17]
MOST_ELEMENTS = 3000
"""Of a value: small networks compile fast, and every kind of tail occurs in them."""

KINDS = (
    *("conv2d",) * 6, *("linear",) * 3, "activation", "activation", "batch_norm", "layer_norm", "add", "add", "mul",
    "sub", "add_number", "mul_number", "matmul", "attention", "softmax", "cat", "cat", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "mean", "pad", "interpolate", "permute", "transpose", "slice", "chunk", "shuffle",
    "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "dropout",
)  # fmt: skip
KINDS_OF_SEQUENCES = (
    *("linear",) * 6, "activation", "layer_norm", "add", "mul", "attention", "softmax", "cat", "mean", "transpose",
    "slice", "chunk", "flatten",
)  # fmt: skip


def _conv2d(draw: Any, shape: _Shape) -> dict[str, Any]:
    c = shape[0]
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
    kernel = draw(st.sampled_from(KERNELS))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    if draw(st.booleans()):
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    grouping = draw(st.sampled_from(["dense", "dense", "depthwise", "doubled depthwise", "grouped"]))
    groups, channels = 1, draw(st.sampled_from(CHANNELS))
    if grouping.endswith("depthwise"):
        groups, channels = c, c * (1 + grouping.startswith("doubled"))
    elif grouping == "grouped":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if c % g == 0]))
        channels = groups * draw(st.sampled_from([1, 2, 4, 5]))
    return {
        "channels": channels, "kernel": kernel, "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)])),
        "padding": padding, "dilation": dilation, "groups": groups, "bias": draw(st.booleans()),
        "norm": draw(st.booleans()), "transposed": draw(st.integers(0, 9)) == 9,
        "activation": draw(st.sampled_from(["none", "none", "relu", "relu", *ACTIVATIONS])),
    }  # fmt: skip


def _pool(draw: Any, op: str) -> dict[str, Any]:
    kernel = draw(st.sampled_from([(2, 2), (3, 3), (3, 2), (1, 1)]))
    options: dict[str, Any] = {
        "kernel_size": kernel, "stride": draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel), "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    if op == "avg_pool2d":
        return options | {"count_include_pad": draw(st.booleans())}
    return options | {"dilation": draw(st.sampled_from([1, 1, 2]))}


def _interpolate(draw: Any) -> dict[str, Any]:
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    size = draw(st.sampled_from([{"scale_factor": 2}, {"scale_factor": 1.5}, {"size": (4, 7)}, {"size": (3, 3)}]))
    return {"mode": mode, **size} | ({"align_corners": draw(st.booleans())} if mode == "bilinear" else {})


def _options(draw: Any, op: str, shape: _Shape) -> dict[str, Any] | None:
    """Draws the options of an operator of one input; None where it takes no such shape."""
    rank = len(shape) + 1
    dim = draw(st.integers(1, rank - 1))
    if op in _OF_IMAGES and rank != 4:
        return None
    if op == "conv2d":
        return _conv2d(draw, shape)
    if op in ("max_pool2d", "avg_pool2d"):
        return _pool(draw, op)
    if op == "linear":
        activation = draw(st.sampled_from(["none", "none", "relu", *ACTIVATIONS]))
        return {"features": draw(st.sampled_from([1, 5, 8, 16])), "bias": draw(st.booleans()), "activation": activation}
    if op == "interpolate":
        return _interpolate(draw)
    if op == "mean":
        dims = draw(st.sampled_from([[2, 3], [2, 3], [-1], [1], [1, 2, 3], [2]]))
        return {"dim": [d for d in dims if d < rank] or [-1], "keepdim": draw(st.booleans())}
    if op == "pad":
        return {"pad": [draw(st.integers(0, 2)) for _ in range(4)], "value": draw(st.sampled_from([0.0, 0.0, 0.25]))}
    if op == "permute":
        return {"dims": (0, *draw(st.permutations(range(1, rank))))}
    if op == "transpose":
        return {"dim0": dim, "dim1": draw(st.integers(1, rank - 1))}
    if op == "slice":
        size = shape[dim - 1]
        start = draw(st.integers(0, size - 1))
        end = draw(st.integers(start + 1, size))
        return {"dim": dim, "start": start, "end": end, "step": draw(st.sampled_from([1, 1, 2]))}
    if op == "chunk":
        parts = draw(st.sampled_from([2, 2, 3]))
        return {"parts": parts, "dim": dim, "index": draw(st.integers(0, parts - 1))}
    simple: dict[str, Callable[[], dict[str, Any]]] = {
        "activation": lambda: {"name": draw(st.sampled_from(list(ACTIVATIONS)))},
        "softmax": lambda: {"dim": draw(st.sampled_from([dim, -1]))},
        "adaptive_avg_pool2d": lambda: {"output_size": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1)]))},
        "shuffle": lambda: {"groups": 2},
        "flatten": lambda: {"start_dim": dim, "end_dim": draw(st.integers(dim, rank - 1))},
        "unflatten": lambda: {"dim": dim, "sizes": (2, -1)},
        "unsqueeze": lambda: {"dim": dim},
        "squeeze": lambda: {"dim": dim},
        "add_number": lambda: {"number": draw(st.sampled_from([0.5, -1.3, 2.0, 9.0]))},
        "mul_number": lambda: {"number": draw(st.sampled_from([0.5, -1.3, 2.0, 0.7]))},
    }
    return simple[op]() if op in simple else {}


_OF_IMAGES = {"conv2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "shuffle"}


def _inputs(draw: Any, op: str, at: int, shapes: list[_Shape]) -> tuple[int, ...] | None:
    """Draws which values an operator joins, `at` among them; None where it takes no such shape."""
    shape = shapes[at]
    equal = [i for i, s in enumerate(shapes) if s == shape]
    if op in ("add", "sub", "mul"):
        gates = [i for i, s in enumerate(shapes) if len(s) == 3 and s == (shape[0], 1, 1)]
        return tuple(draw(st.permutations([at, draw(st.sampled_from(equal + gates))])))
    if op == "matmul":
        fitting = [i for i, s in enumerate(shapes) if len(s) == len(shape) > 1 and s[:-2] == shape[:-2]]
        fitting = [i for i in fitting if shapes[i][-2] == shape[-1]]
        return (at, draw(st.sampled_from(fitting))) if fitting else None
    if op == "attention":
        return (at, draw(st.sampled_from(equal)), draw(st.sampled_from(equal))) if len(shape) > 1 else None
    return (at, *draw(st.lists(st.sampled_from(equal), min_size=1, max_size=2))) if op == "cat" else (at,)


def _checked(op: str, inputs: tuple[int, ...], options: dict[str, Any], shapes: list[_Shape]) -> _Shape | None:
    """Lets PyTorch say whether the operator takes such inputs, and what comes out."""
    try:
        with torch.no_grad():
            samples = [torch.zeros(2, *shapes[i]) for i in inputs]
            y = BUILDERS[op](samples, options).eval()(*samples)
    except (RuntimeError, ValueError, IndexError):
        return None
    fits = y.dim() in (2, 3, 4, 5) and y.shape[0] == 2 and 0 < y[0].numel() <= MOST_ELEMENTS
    return tuple(y.shape[1:]) if fits else None


@st.composite
def module_plans(
    draw: Any, max_steps: int = 6, kinds: Sequence[str] = KINDS, ranks: Sequence[int] = (4, 4, 4, 3, 2)
) -> ModulePlan:
    """Draws a module of at most `max_steps` operators, each of which may take any earlier value."""
    rank = draw(st.sampled_from(ranks))
    side = st.integers(1, 9)
    first: _Shape = (draw(st.sampled_from(CHANNELS)),)
    if rank > 2:
        first = (*first, draw(side), draw(side)) if rank == 4 else (draw(side), *first)
    shapes, steps = [first], []
    for _ in range(draw(st.integers(1, max_steps))):
        op = draw(st.sampled_from(kinds))
        # later values first: networks are deep rather than wide
        at = len(shapes) - 1 - draw(st.sampled_from([0, 0, 0, min(1, len(shapes) - 1), min(3, len(shapes) - 1)]))
        inputs, options = _inputs(draw, op, at, shapes), _options(draw, op, shapes[at])
        if inputs is None or options is None:
            continue
        if op == "cat":
            options = {"dim": draw(st.integers(1, len(shapes[at])))}
        shape = _checked(op, inputs, options, shapes)
        if shape is not None:
            steps.append(Step(op, inputs, options))
            shapes.append(shape)
    if not any(step.op in ("conv2d", "linear") for step in steps):  # without a layer nothing is quantized
        steps.append(Step("linear", (len(shapes) - 1,), {"features": 5, "bias": True, "activation": "none"}))
        shapes.append((*shapes[-1][:-1], 5))
    read = {i for step in steps for i in step.inputs}
    unread = [i for i in range(1, len(shapes)) if i not in read]
    extra = draw(st.lists(st.integers(1, len(shapes) - 1), max_size=1))
    return ModulePlan(first, tuple(steps), tuple(dict.fromkeys([*unread, *extra])), draw(st.integers(0, 2**16)))
