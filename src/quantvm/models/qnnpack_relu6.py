"""A quantized ReLU6 that is correct under PyTorch's engine qnnpack.

Under qnnpack, PyTorch 2.13's clamp of a channels-last tensor writes its elements in channels-last order into an output
declared contiguous, so they come back scrambled (aten/src/ATen/native/quantized/cpu/qclamp.cpp, `qnnpack_clamp`). For a
contiguous tensor it is correct.
"""

from __future__ import annotations

import torch
from torch import nn


class ReLU6(nn.Module):
    """`torch.ao.nn.quantized.ReLU6` on a contiguous copy; the result has the input's memory format."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns clip(x, Q(0), Q(6)) with the parameters of x, a quint8 tensor (N, C, H, W)."""
        y = torch.ops.quantized.relu6(x.contiguous())
        return y.contiguous(memory_format=torch.channels_last)


def replace_relu6(model: nn.Module) -> None:
    """Replaces every quantized ReLU6 of a converted model, in place."""
    from torch.ao.nn.quantized import ReLU6 as ScrambledReLU6

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is ScrambledReLU6:
                setattr(module, name, ReLU6())
