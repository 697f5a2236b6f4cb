"""Random quantized networks, built from PyTorch's own eager modules by a plan; random_plans.py draws plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn

from quantvm.choices import Engine
from quantvm.torch_compat import has_vnni, quantization_engine

LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class Step:
    """One operator: its inputs (indices of earlier values, 0 is the quantized input), and its options."""

    op: str
    inputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A network: the (C, H, W) input, the operators in order, and what all random numbers come from.

    The engine is the one that packs the weights; PyTorch must run the network under it, too.
    """

    input_shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    seed: int
    returns_all: bool = True
    engine: Engine = "fbgemm"
    channels_last: bool = False


class RandomNetwork(nn.Module):
    """Runs a plan; returns every intermediate value dequantized, or only the last one.

    Scales follow from running the float network on a sample, as an observer would choose them.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        rng = np.random.default_rng(plan.seed)
        self.returns_all = plan.returns_all
        self.modules_by_step = nn.ModuleList()
        with quantization_engine(plan.engine):
            scale = float(np.float32(rng.choice([0.0171, 2.0**-6, 0.11])))
            self.quantize = nnq.Quantize(scale, _zero_point(rng), torch.quint8)
            values = [self.quantize(self.sample(2, plan.seed))]
            for step in plan.steps:
                module = BUILDERS[step.op](rng, [values[i] for i in step.inputs], step.options)
                self.modules_by_step.append(module)
                values.append(module(*(values[i] for i in step.inputs)))
        self.eval()

    def sample(self, batch: int, seed: int) -> torch.Tensor:
        """Returns an input whose values cover the quantized range and beyond, half of them exact ties."""
        rng = np.random.default_rng(seed)
        shape = (batch, *self.plan.input_shape)
        steps = rng.integers(-4, 516, shape) / 2 - self.quantize.zero_point.item()
        x = steps * np.float32(self.quantize.scale.item())
        x = torch.from_numpy((x + np.where(rng.random(shape) < 0.5, 0, rng.normal(0, 0.01, shape))).astype(np.float32))
        return x.contiguous(memory_format=torch.channels_last) if self.plan.channels_last else x

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
    """Concatenation, as a converted FloatFunctional does it."""

    def __init__(self, dim: int, scale: float, zero_point: int) -> None:
        super().__init__()
        self.functional = nnq.QFunctional()
        self.functional.scale, self.functional.zero_point = scale, zero_point
        self.dim = dim

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.functional.cat(list(inputs), dim=self.dim)


class Arithmetic(nn.Module):
    """add, add_relu, mul or mul_relu under parameters of its own, as a converted FloatFunctional does it."""

    def __init__(self, name: str, scale: float, zero_point: int) -> None:
        super().__init__()
        self.operator = getattr(torch.ops.quantized, name)
        self.scale, self.zero_point = scale, zero_point

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.operator(a, b, self.scale, self.zero_point)


# ------------------------------------------------------------------ quantization parameters


def _zero_point(rng: np.random.Generator) -> int:
    return min(int(rng.choice([0, 1, 101, 128, 254, 255])), _largest_zero_point())


def _largest_zero_point() -> int:
    """Returns 254 under QNNPACK, whose ReLU refuses a range of one integer."""
    return 254 if torch.backends.quantized.engine == "qnnpack" else 255


def output_params(rng: np.random.Generator, y_f32: torch.Tensor) -> tuple[float, int]:
    """Returns scale and zero point for values like `y_f32`: fitting, narrow, a power of two, or shifted to an end."""
    low, high = min(float(y_f32.min()), 0.0), max(float(y_f32.max()), 0.0)
    scale = max((high - low) / 255, 1e-4) * float(rng.choice([1.0, 1.0, 0.5, 1.7]))
    if rng.random() < 0.25:
        scale = 2.0 ** np.round(np.log2(scale))
    natural = int(np.clip(np.rint(-low / scale), 0, _largest_zero_point()))
    return float(np.float32(scale)), natural if rng.random() < 0.7 else _zero_point(rng)


def _largest(padded: bool) -> int:
    """Returns the greatest weight: without VNNI, oneDNN's sums saturate, but not in padding: not reproduced."""
    exact_padding = padded and torch.backends.quantized.engine == "onednn" and not has_vnni()
    return 63 if exact_padding else LARGEST_WEIGHT


def quantized_weight(
    rng: np.random.Generator, shape: tuple[int, ...], scheme: str, largest: int = LARGEST_WEIGHT
) -> torch.Tensor:
    """Returns a qint8 weight over the full range: per tensor or per channel, symmetric or with zero points."""
    integers = rng.integers(-largest - 1, largest + 1, shape)
    if rng.random() < 0.5:  # bell-shaped, as trained ones are
        integers = np.clip(np.rint(rng.normal(0, largest / 4, shape)), -largest, largest)
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
    weight = quantized_weight(rng, shape, options["scheme"], _largest(any(options["padding"])))
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
    y_f32 = a + b if options["name"].startswith("add") else a * b
    return Arithmetic(options["name"], *output_params(rng, y_f32))


def _cat(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    dim = options["dim"]
    if options["same_params"]:
        return Cat(dim, inputs[0].q_scale(), inputs[0].q_zero_point())
    return Cat(dim, *output_params(rng, torch.cat([x.dequantize() for x in inputs], dim)))


def _hardswish(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    return nnq.Hardswish(*output_params(rng, F.hardswish(inputs[0].dequantize())))


def _scaled_sigmoid(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    return nnq.Sigmoid(*output_params(rng, torch.sigmoid(inputs[0].dequantize())))


def _leaky_relu(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    slope = options["slope"]
    return nnq.LeakyReLU(*output_params(rng, F.leaky_relu(inputs[0].dequantize(), slope)), negative_slope=slope)


def _elu(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    return nnq.ELU(*output_params(rng, F.elu(inputs[0].dequantize(), options["alpha"])), alpha=options["alpha"])


def _prelu(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    x = inputs[0]
    integers = torch.from_numpy(rng.integers(0, 256, x.shape[1] if options["by_channel"] else 1).astype(np.uint8))
    slopes = torch._make_per_tensor_quantized_tensor(
        integers, float(rng.choice([0.002, 0.02])), int(rng.integers(0, 40))
    )
    scale, zero_point = output_params(rng, F.prelu(x.dequantize(), slopes.dequantize()))
    return Call(lambda y: torch.ops.quantized.prelu(y, slopes, scale, zero_point))


def _normalization(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    x, quantized = inputs[0], torch.ops.quantized
    if options["name"] == "layer_norm":
        shape = list(x.shape[1:])
        gamma, beta = (torch.from_numpy(rng.normal(1, 0.5, shape).astype(np.float32)) for _ in range(2))
        scale, zero_point = output_params(rng, F.layer_norm(x.dequantize(), shape, gamma, beta))
        return Call(lambda y: quantized.layer_norm(y, shape, gamma, beta, 1e-5, scale, zero_point))
    weight, bias, mean = (torch.from_numpy(rng.normal(0, 1, x.shape[1]).astype(np.float32)) for _ in range(3))
    variance = weight**2 + 0.1
    scale, zero_point = output_params(rng, F.batch_norm(x.dequantize(), mean, variance, weight, bias))
    return Call(lambda y: quantized.batch_norm2d(y, weight, bias, mean, variance, 1e-5, scale, zero_point))


def _view(x: torch.Tensor, kind: str) -> torch.Tensor:
    views = {
        "rows": lambda: x[:, :, 1:],
        "every second column": lambda: x[..., ::2],
        "transposition": lambda: x.transpose(2, 3),
        "every second channel": lambda: x[:, ::2],
    }
    return views[kind]()


def _call(function: Any) -> Any:
    return lambda rng, inputs, options: Call(function, **options)


def _clamp(function: Any) -> Any:
    def build(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
        if torch.backends.quantized.engine != "qnnpack":
            return Call(function, **options)
        return Call(lambda x: function(x.contiguous(), **options))  # PyTorch scrambles channels-last tensors there

    return build


def _shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, groups, c // groups, h, w), 1, 2).contiguous().view(n, -1, h, w)


def _half(x: torch.Tensor, index: int) -> torch.Tensor:
    return x.chunk(2, dim=1)[index]


def _with_number(rng: np.random.Generator, inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    return Call(getattr(torch.ops.quantized, options["name"]), options["number"])


BUILDERS: dict[str, Any] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "arithmetic": _arithmetic,
    "cat": _cat,
    "hardswish": _hardswish,
    "leaky_relu": _leaky_relu,
    "scaled_sigmoid": _scaled_sigmoid,
    "with_number": _with_number,
    "hardsigmoid": _call(F.hardsigmoid),
    "sigmoid": _call(torch.sigmoid),
    "tanh": _call(torch.tanh),
    "relu": _call(torch.relu),
    "relu6": _clamp(F.relu6),
    "hardtanh": _clamp(F.hardtanh),
    "max_pool2d": _call(F.max_pool2d),
    "avg_pool2d": _call(F.avg_pool2d),
    "adaptive_avg_pool2d": _call(F.adaptive_avg_pool2d),
    "mean": _call(torch.mean),
    "pad": _call(F.pad),
    "shuffle": _call(_shuffled),
    "half": _call(_half),
    "view": _call(_view),
    "interpolate": _call(F.interpolate),
    "elu": _elu,
    "prelu": _prelu,
    "normalization": _normalization,
}
