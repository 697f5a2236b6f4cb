"""Random quantized networks: drawn as a plan that hypothesis can shrink, built from PyTorch's own eager modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn

from quantvm.runtime.target import cpu_features

# FBGEMM adds pairs of products with saturation to int16 where the CPU has no VNNI: 2 * 255 * 63 still fits.
LARGEST_WEIGHT = 127 if "avx512_vnni" in cpu_features() else 63


@dataclass(frozen=True)
class Step:
    """One operator: its inputs (indices of earlier values, 0 is the quantized input), and its options."""

    op: str
    inputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A network: the (C, H, W) input, the operators in order, and what all random numbers come from."""

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    seed: int
    returns_all: bool = True


class RandomNetwork(nn.Module):
    """Runs a plan; returns every intermediate value dequantized, or only the last one.

    Scales follow from running the float network on a sample, as an observer would choose them.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        rng = np.random.default_rng(plan.seed)
        self.returns_all = plan.returns_all
        self.quantize = nnq.Quantize(
            float(np.float32(rng.choice([0.0171, 2.0**-6, 0.11]))), _zero_point(rng), torch.quint8
        )
        values = [self.quantize(self.sample(2, plan.seed))]
        self.modules_by_step = nn.ModuleList()
        for step in plan.steps:
            module = _BUILDERS[step.op](rng, [values[i] for i in step.inputs], step.options)
            self.modules_by_step.append(module)
            values.append(module(*(values[i] for i in step.inputs)))
        self.eval()

    def sample(self, batch: int, seed: int) -> torch.Tensor:
        """Returns an input whose values cover the quantized range and beyond, half of them exact ties."""
        rng = np.random.default_rng(seed)
        shape = (batch, *self.plan.input_shape)
        steps = rng.integers(-4, 516, shape) / 2 - self.quantize.zero_point.item()
        x = steps * np.float32(self.quantize.scale.item())
        return torch.from_numpy(
            (x + np.where(rng.random(shape) < 0.5, 0, rng.normal(0, 0.01, shape))).astype(np.float32)
        )

    def forward(self, x: torch.Tensor) -> Any:
        values = [self.quantize(x)]
        for step, module in zip(self.plan.steps, self.modules_by_step, strict=True):
            values.append(module(*(values[i] for i in step.inputs)))
        if self.returns_all:
            return tuple(v.dequantize() for v in values)
        return values[-1].dequantize()


class Call(nn.Module):
    """An operator without weights, with its options bound."""

    def __init__(self, function: Any, *options: Any, **named: Any) -> None:
        super().__init__()
        self.function, self.options, self.named = function, options, named

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, *self.options, **self.named)


class Cat(nn.Module):
    """Concatenation along channels, as a converted FloatFunctional does it."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.functional = nnq.QFunctional()
        self.functional.scale, self.functional.zero_point = scale, zero_point

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.functional.cat(list(inputs), dim=1)


class Arithmetic(nn.Module):
    """add, add_relu or mul, as a converted FloatFunctional does it."""

    def __init__(self, name: str, scale: float, zero_point: int) -> None:
        super().__init__()
        self.functional = nnq.QFunctional()
        self.functional.scale, self.functional.zero_point = scale, zero_point
        self.name = name

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return getattr(self.functional, self.name)(a, b)


# ------------------------------------------------------------------ quantization parameters


def _zero_point(rng: np.random.Generator) -> int:
    return int(rng.choice([0, 1, 101, 128, 254, 255]))


def output_params(rng: np.random.Generator, y_f32: torch.Tensor) -> tuple[float, int]:
    """Returns scale and zero point for values like `y_f32`: fitting, narrow, a power of two, or shifted to an end."""
    low, high = min(float(y_f32.min()), 0.0), max(float(y_f32.max()), 0.0)
    scale = max((high - low) / 255, 1e-4) * float(rng.choice([1.0, 1.0, 0.5, 1.7]))
    if rng.random() < 0.25:
        scale = 2.0 ** np.round(np.log2(scale))
    natural = int(np.clip(np.rint(-low / scale), 0, 255))
    return float(np.float32(scale)), natural if rng.random() < 0.7 else _zero_point(rng)


def quantized_weight(rng: np.random.Generator, shape: tuple[int, ...], scheme: str) -> torch.Tensor:
    """Returns a qint8 weight over the full range: per tensor or per channel, symmetric or with zero points."""
    integers = rng.integers(-LARGEST_WEIGHT - 1, LARGEST_WEIGHT + 1, shape)
    if rng.random() < 0.5:  # bell-shaped, as trained ones are
        integers = np.clip(np.rint(rng.normal(0, LARGEST_WEIGHT / 4, shape)), -LARGEST_WEIGHT, LARGEST_WEIGHT)
    values = torch.from_numpy(integers.astype(np.int8))
    count = 1 if "tensor" in scheme else shape[0]
    scales = rng.uniform(0.002, 0.02, count).astype(np.float32).astype(np.float64)
    zero_points = rng.integers(-20, 20, count) if "asymmetric" in scheme else np.zeros(count, np.int64)
    if "tensor" in scheme:
        return torch._make_per_tensor_quantized_tensor(values, float(scales[0]), int(zero_points[0]))
    return torch._make_per_channel_quantized_tensor(values, torch.from_numpy(scales), torch.from_numpy(zero_points), 0)


# ------------------------------------------------------------------ builders: (rng, sample inputs, options) -> module


def _set_weights(
    module: Any, rng: np.random.Generator, weight: torch.Tensor, has_bias: bool, float_output: Any
) -> nn.Module:
    bias = None
    if has_bias:
        spread = float(float_output(weight.dequantize(), None).std(correction=0)) / 2 + 1e-3
        bias = torch.from_numpy(rng.normal(0, spread, weight.shape[0]).astype(np.float32))
    module.set_weight_bias(weight, bias)
    module.scale, module.zero_point = output_params(rng, float_output(weight.dequantize(), bias))
    return module


def _conv2d(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    (x,) = inputs
    geometry = {k: options[k] for k in ("stride", "padding", "dilation", "groups")}
    kind = nniq.ConvReLU2d if options["relu"] else nnq.Conv2d
    module = kind(x.shape[1], options["channels"], options["kernel"], bias=options["bias"], **geometry)
    shape = (options["channels"], x.shape[1] // options["groups"], *options["kernel"])
    weight = quantized_weight(rng, shape, options["scheme"])
    return _set_weights(module, rng, weight, options["bias"], lambda w, b: F.conv2d(x.dequantize(), w, b, **geometry))


def _linear(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    x = torch.flatten(inputs[0], 1)
    kind = nniq.LinearReLU if options["relu"] else nnq.Linear
    module = kind(x.shape[1], options["features"], options["bias"])
    weight = quantized_weight(rng, (options["features"], x.shape[1]), options["scheme"])
    linear = _set_weights(module, rng, weight, options["bias"], lambda w, b: F.linear(x.dequantize(), w, b))
    return nn.Sequential(nn.Flatten(1), linear)


def _arithmetic(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    a, b = (x.dequantize() for x in inputs)
    y_f32 = a * b if options["name"] == "mul" else a + b
    return Arithmetic(options["name"], *output_params(rng, y_f32))


def _cat(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    if options["same_params"]:
        return Cat(inputs[0].q_scale(), inputs[0].q_zero_point())
    return Cat(*output_params(rng, torch.cat([x.dequantize() for x in inputs], 1)))


def _hardswish(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    return nnq.Hardswish(*output_params(rng, F.hardswish(inputs[0].dequantize())))


def _leaky_relu(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    slope = options["slope"]
    return nnq.LeakyReLU(*output_params(rng, F.leaky_relu(inputs[0].dequantize(), slope)), negative_slope=slope)


def _call(function: Any) -> Any:
    return lambda rng, inputs, options: Call(function, **options)


def _shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, groups, c // groups, h, w), 1, 2).contiguous().view(n, -1, h, w)


def _half(x: torch.Tensor, index: int) -> torch.Tensor:
    return x.chunk(2, dim=1)[index]


_BUILDERS: dict[str, Any] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "arithmetic": _arithmetic,
    "cat": _cat,
    "hardswish": _hardswish,
    "leaky_relu": _leaky_relu,
    "hardsigmoid": _call(F.hardsigmoid),
    "relu": _call(torch.relu),
    "relu6": _call(F.relu6),
    "hardtanh": _call(F.hardtanh),
    "max_pool2d": _call(F.max_pool2d),
    "avg_pool2d": _call(F.avg_pool2d),
    "adaptive_avg_pool2d": _call(F.adaptive_avg_pool2d),
    "mean": _call(torch.mean),
    "pad": _call(F.pad),
    "shuffle": _call(_shuffled),
    "half": _call(_half),
}

# ------------------------------------------------------------------ drawing plans

KERNELS = [(3, 3), (1, 1), (2, 2), (5, 5), (1, 3), (3, 1), (7, 7)]
CHANNELS = [1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 32, 33, 40]
_Shape = tuple[int, int, int]


def _conv2d_step(draw: Any, at: int, shape: _Shape) -> tuple[Step, _Shape] | None:
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
        "scheme": draw(st.sampled_from(["per channel", "per tensor", "per channel", "per tensor asymmetric"])),
    }  # fmt: skip
    return Step("conv2d", (at,), options), (channels, height, width)


def _pool_step(draw: Any, at: int, shape: _Shape, op: str) -> tuple[Step, _Shape] | None:
    kernel = draw(st.sampled_from([(2, 2), (3, 3), (3, 2), (1, 1)]))
    options = {
        "kernel_size": kernel, "stride": draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel), "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    if op == "avg_pool2d":
        options["count_include_pad"] = draw(st.booleans())
    else:
        options["dilation"] = draw(st.sampled_from([1, 1, 2]))
    return _checked(op, at, shape, options)


def _checked(op: str, at: int, shape: _Shape, options: dict[str, Any]) -> tuple[Step, _Shape] | None:
    """Lets PyTorch say whether the operator takes such an input, and what comes out."""
    try:
        y = _BUILDERS[op](None, [], options)(torch.zeros(1, *shape))
    except RuntimeError:
        return None
    return (Step(op, (at,), options), tuple(y.shape[1:])) if y.numel() else None


def _simple_step(draw: Any, op: str, at: int, shape: _Shape) -> tuple[Step, _Shape] | None:
    c, h, w = shape
    if op == "adaptive_avg_pool2d":
        size = draw(st.sampled_from([(1, 1), (2, 2), (3, 1)]))
        return (Step(op, (at,), {"output_size": size}), (c, *size)) if h > 1 or w > 1 or size == (1, 1) else None
    if op == "mean":
        return Step(op, (at,), {"dim": [2, 3], "keepdim": True}), (c, 1, 1)
    if op == "pad":
        left, right, top, bottom = (draw(st.integers(0, 2)) for _ in range(4))
        return _checked(op, at, shape, {"pad": [left, right, top, bottom]})
    if op == "shuffle":
        return (Step(op, (at,), {"groups": 2}), shape) if c % 2 == 0 else None
    if op == "half":
        return (Step(op, (at,), {"index": draw(st.integers(0, 1))}), (c // 2, h, w)) if c % 2 == 0 else None
    options = {"slope": draw(st.sampled_from([0.01, 0.3]))} if op == "leaky_relu" else {}
    options = {"min_val": -0.5, "max_val": 0.75} if op == "hardtanh" else options
    return Step(op, (at,), options), shape


def _joining_step(draw: Any, op: str, at: int, shapes: list[_Shape]) -> tuple[Step, _Shape] | None:
    c, h, w = shapes[at]
    if op == "cat":
        partners = [i for i, s in enumerate(shapes) if s[1:] == (h, w)]
        others = draw(st.lists(st.sampled_from(partners), min_size=1, max_size=2))
        inputs = tuple(draw(st.permutations([at, *others])))
        total = sum(shapes[i][0] for i in inputs)
        return (Step("cat", inputs, {"same_params": draw(st.booleans())}), (total, h, w)) if total <= 96 else None
    name = draw(st.sampled_from(["add", "add_relu", "mul"]))
    fitting = [i for i, s in enumerate(shapes) if s == shapes[at] or (name == "mul" and s == (c, 1, 1))]
    inputs = draw(st.permutations([at, draw(st.sampled_from(fitting))]))
    return Step("arithmetic", tuple(inputs), {"name": name}), shapes[at]


def _linear_step(draw: Any, at: int) -> Step:
    options = {
        "features": draw(st.sampled_from([1, 10, 16, 35])), "bias": draw(st.booleans()), "relu": draw(st.booleans()),
        "scheme": draw(st.sampled_from(["per channel", "per tensor", "per tensor asymmetric"])),
    }  # fmt: skip
    return Step("linear", (at,), options)


_KINDS = (
    *("conv2d",) * 8, "arithmetic", "arithmetic", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "mean", "hardswish", "hardsigmoid", "leaky_relu", "relu", "relu6", "hardtanh", "pad", "shuffle", "half",
)  # fmt: skip


@st.composite
def plans(draw: Any, max_steps: int = 7) -> Plan:
    """Draws a network of at most `max_steps` operators, in which every operator may take any earlier value."""
    first = (draw(st.sampled_from(CHANNELS)), draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    shapes: list[_Shape] = [first]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, max_steps))):
        op = draw(st.sampled_from(_KINDS))
        # later values first: networks are deep rather than wide
        at = len(shapes) - 1 - draw(st.sampled_from([0, 0, 0, min(1, len(shapes) - 1), min(3, len(shapes) - 1)]))
        if op == "conv2d":
            found = _conv2d_step(draw, at, shapes[at])
        elif op in ("max_pool2d", "avg_pool2d"):
            found = _pool_step(draw, at, shapes[at], op)
        elif op in ("cat", "arithmetic"):
            found = _joining_step(draw, op, at, shapes)
        else:
            found = _simple_step(draw, op, at, shapes[at])
        if found is not None:
            steps.append(found[0])
            shapes.append(found[1])
    if draw(st.booleans()) or not steps:
        steps.append(_linear_step(draw, len(shapes) - 1))
    return Plan(first, tuple(steps), draw(st.integers(0, 2**16)), draw(st.booleans()))
