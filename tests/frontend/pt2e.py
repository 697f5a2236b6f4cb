"""Small networks through every PT2E quantizer, and imported modules evaluated in float by TVM."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax

from ..torchao_patterns import keep_patterns

DYNAMIC = ({0: torch.export.Dim("batch")},)


class Residual(nn.Module):
    """conv-bn-relu, a residual add whose convolution has no quantization of its own, pool, cat and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.side = nn.Conv2d(8, 8, 1)
        self.depthwise, self.relu3 = nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.ReLU6(inplace=True)
        self.pool, self.drop, self.fc = nn.MaxPool2d(2), nn.Dropout(0.2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.conv2(x) + x)
        x = self.pool(torch.cat([x, self.side(x)], 1))
        x = self.relu3(self.depthwise(x))
        return self.fc(self.drop(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))


class Plain(nn.Module):
    """conv-bn-relu, depthwise, and linear: small, for quantization-aware training matches patterns at length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()
        self.depthwise, self.fc = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.depthwise(self.relu(self.norm(self.conv(x)))).mean([2, 3]))


class SqueezeExcite(nn.Module):
    """Hard-swish, a gate of the channels, average pool and linear layers in sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.down, self.up, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Hardsigmoid()
        self.classifier = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.avg_pool2d(self.stem(x), 2)
        x = x * self.gate(self.up(torch.relu(self.down(x.mean([2, 3], keepdim=True)))))
        return self.classifier(x.mean([2, 3]))


def quantizer(name: str, *, qat: bool = False) -> Any:
    """Returns the quantizer x86, arm or xnnpack with its default configuration."""
    if name == "x86":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        made = x86.X86InductorQuantizer()
        return made.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))
    if name == "arm":
        from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm

        made = arm.ArmInductorQuantizer()
        return made.set_global(arm.get_default_arm_inductor_quantization_config(is_qat=qat))
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    made = xnnpack.XNNPACKQuantizer()
    return made.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=qat))


def quantize(model: nn.Module, x: torch.Tensor, name: str, *, qat: bool = False, dynamic: bool = True) -> Any:
    """Returns the model quantized by PT2E and exported."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

    keep_patterns()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = DYNAMIC if dynamic else None
        exported = torch.export.export(model.train(qat), (x,), dynamic_shapes=shapes).module()
        prepared = (prepare_qat_pt2e if qat else prepare_pt2e)(exported, quantizer(name, qat=qat))
        prepared(x)
        if qat:
            move_exported_model_to_eval(prepared)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        return torch.export.export(converted, (x,), dynamic_shapes=shapes)


def quantize_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """Returns the model quantized for XNNPACK and exported, for arguments of any structure."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    keep_patterns()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes).module()
        prepared = prepare_pt2e(exported, quantizer("xnnpack"))
        prepared(*args, **kwargs)
        return torch.export.export(convert_pt2e(prepared), args, kwargs, dynamic_shapes=shapes)


def evaluate(module: tvm.IRModule, *inputs: torch.Tensor) -> list[np.ndarray]:
    """Returns what the module computes in float: TVM's own lowering of every operator, quantize among them."""
    executable = relax.build(module, "llvm")
    results = relax.VirtualMachine(executable, tvm.cpu())["main"](*(tvm.runtime.tensor(x.numpy()) for x in inputs))
    return [r.numpy() for r in results] if not hasattr(results, "numpy") else [results.numpy()]


def calls(module: tvm.IRModule) -> list[Any]:
    """Returns the operator calls of main, in order."""
    values = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    return [value for value in values if hasattr(getattr(value, "op", None), "name")]
