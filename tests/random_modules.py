"""Random float modules, built by a plan, for flows that quantize such; random_module_plans.py draws plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .random_network import Call, Step


@dataclass(frozen=True)
class ModulePlan:
    """A float module: the shape of its input without the batch, the operators in order, and which values it returns.

    Values are numbered from 0, the input; each step makes one. All random numbers come from the seed.
    """

    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    seed: int


class RandomModule(nn.Module):
    """Runs a plan; returns one tensor, or several as a tuple.

    Attributes:
        shapes: of the plan's values, without the batch.
    """

    def __init__(self, plan: ModulePlan) -> None:
        super().__init__()
        self.plan = plan
        generator = torch.Generator().manual_seed(plan.seed)
        self.modules_by_step = nn.ModuleList()
        values = [self.sample(2, plan.seed)]
        with torch.no_grad():
            for step in plan.steps:
                inputs = [values[i] for i in step.inputs]
                module = BUILDERS[step.op](inputs, step.options).eval()
                _randomize(module, generator)
                self.modules_by_step.append(module)
                values.append(module(*(x.clone() for x in inputs)))
        self.shapes = [tuple(x.shape[1:]) for x in values]
        self.eval().requires_grad_(False)

    def sample(self, batch: int, seed: int) -> torch.Tensor:
        """Returns an input of standard normal values."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((batch, *self.plan.input_shape), generator=generator)

    def forward(self, x: torch.Tensor) -> Any:
        values = [x]
        for step, module in zip(self.plan.steps, self.modules_by_step, strict=True):
            values.append(module(*(values[i] for i in step.inputs)))
        found = tuple(values[i] for i in self.plan.outputs)
        return found[0] if len(found) == 1 else found


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Sets weights that keep the spread of values, and statistics that a normalization undoes in part."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (1.5 / parameter[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("weight"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0, 0.3, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)


# ------------------------------------------------------------------ builders: (sample inputs, options) -> module


def _conv2d(inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    kind = nn.ConvTranspose2d if options["transposed"] else nn.Conv2d
    geometry = {k: options[k] for k in ("stride", "padding", "dilation", "groups")}
    conv = kind(inputs[0].shape[1], options["channels"], options["kernel"], bias=options["bias"], **geometry)
    norm = [nn.BatchNorm2d(options["channels"])] if options["norm"] else []
    return nn.Sequential(conv, *norm, *_activation(options["activation"]))


def _linear(inputs: list[torch.Tensor], options: dict[str, Any]) -> nn.Module:
    linear = nn.Linear(inputs[0].shape[-1], options["features"], options["bias"])
    return nn.Sequential(linear, *_activation(options["activation"]))


def _activation(name: str) -> list[nn.Module]:
    return [] if name == "none" else [ACTIVATIONS[name]()]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.75),
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "softsign": nn.Softsign,
}


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * 0.5, -1), v)


def _chunk(x: torch.Tensor, parts: int, dim: int, index: int) -> torch.Tensor:
    return x.chunk(parts, dim)[index]


def _slice(x: torch.Tensor, dim: int, start: int, end: int, step: int) -> torch.Tensor:
    return x[(slice(None),) * dim + (slice(start, end, step),)]


def _shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.flatten(x.unflatten(1, (groups, -1)).transpose(1, 2), 1, 2)


def _cat(*inputs: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat(inputs, dim)


def _call(function: Any) -> Callable[[list[torch.Tensor], dict[str, Any]], nn.Module]:
    return lambda inputs, options: Call(function, **options)


BUILDERS: dict[str, Callable[[list[torch.Tensor], dict[str, Any]], nn.Module]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "activation": lambda inputs, options: ACTIVATIONS[options["name"]](),
    "batch_norm": lambda inputs, options: nn.BatchNorm2d(inputs[0].shape[1]),
    "layer_norm": lambda inputs, options: nn.LayerNorm(inputs[0].shape[-1]),
    "add": _call(torch.add),
    "sub": _call(torch.sub),
    "mul": _call(torch.mul),
    "add_number": lambda inputs, options: Call(lambda x: x + options["number"]),
    "mul_number": lambda inputs, options: Call(lambda x: x * options["number"]),
    "matmul": _call(torch.matmul),
    "attention": _call(_attention),
    "softmax": _call(torch.softmax),
    "cat": _call(_cat),
    "max_pool2d": _call(F.max_pool2d),
    "avg_pool2d": _call(F.avg_pool2d),
    "adaptive_avg_pool2d": _call(F.adaptive_avg_pool2d),
    "mean": _call(torch.mean),
    "pad": _call(F.pad),
    "interpolate": _call(F.interpolate),
    "permute": _call(torch.permute),
    "transpose": _call(torch.transpose),
    "slice": _call(_slice),
    "chunk": _call(_chunk),
    "shuffle": _call(_shuffled),
    "flatten": _call(torch.flatten),
    "unflatten": _call(torch.unflatten),
    "unsqueeze": _call(torch.unsqueeze),
    "squeeze": _call(torch.squeeze),
    "contiguous": lambda inputs, options: Call(lambda x: x.contiguous()),
    "dropout": lambda inputs, options: nn.Dropout(0.2),
}
