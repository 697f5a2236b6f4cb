"""The network EfficientNet-Lite as a quantizable module: MBConv blocks without squeeze-and-excitation, with ReLU6.

``efficientnet_lite.py`` lists the sizes and their weights. Two things matter for the accuracy of the
published weights, which were trained in TensorFlow (lite0, float, 600 labelled images, top-1 87.2 %):

- TensorFlow's "SAME" padding is asymmetric for a strided convolution of an even size. PyTorch's symmetric padding would
  shift the image by a pixel in every such layer: 80.2 %.
- ReLU6 must stay: plain ReLU instead gives 58.2 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.ao.nn.intrinsic import ConvReLU2d
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules


class Stage(NamedTuple):
    """A sequence of equal blocks; only the first one has the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_channels: int


# EfficientNet-B0 (Tan and Le 2019, table 1).
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
BATCH_NORM_EPS = 1e-3


def scale_stages(width: float, depth: float) -> tuple[Stage, ...]:
    """Returns the stages with channels and repeats scaled; Lite keeps the repeats of the first and the last stage."""
    last = len(STAGES) - 1
    return tuple(
        stage._replace(
            out_channels=round_channels(stage.out_channels * width),
            repeats=stage.repeats if i in (0, last) else math.ceil(stage.repeats * depth),
        )
        for i, stage in enumerate(STAGES)
    )


def round_channels(channels: float) -> int:
    """Returns the nearest multiple of 8 that is at least nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int, int]:
    """Returns TensorFlow's "SAME" padding as (before, after, output size); an odd total has one more after."""
    out_size = -(-size // stride)
    total = max((out_size - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2, out_size


class ConvNorm(nn.Module):
    """A convolution with batch norm, with "SAME" padding for one known input size, and ReLU6 unless it is linear."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu6: bool = True,
    ) -> None:
        super().__init__()
        before, after, self.out_size = same_padding(size, kernel_size, stride)
        symmetric = before == after
        self.pad = nn.Identity() if symmetric else nn.ZeroPad2d((before, after, before, after))
        self.conv: nn.Module = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, before if symmetric else 0, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.activation = nn.ReLU6() if relu6 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activated, normalized convolution of x, (N, C, H, W)."""
        return self.activation(self.norm(self.conv(self.pad(x))))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Folds the batch norm, and the activation's lower half, into the convolution; in evaluation mode.

        torch does not fuse ReLU6. A convolution observed without its activation would get a range that ReLU6 mostly
        cuts off (lite0: 72.5 % top-1). So the convolution is fused with a ReLU whose *float* form clips at 6, and
        its observer sees only 0..6 (86.8 %; without the clip 84.0 %). The ReLU6 after it stays, because a reduced range
        ends at 127 but the kernels saturate only at 255.
        """
        if is_qat or self.training:
            raise NotImplementedError("EfficientNet-Lite is quantized after training; call eval() before fuse_model()")
        fuse_modules(self, ["conv", "norm"], inplace=True)
        if isinstance(self.activation, nn.ReLU6):
            self.conv = ConvReLU2d(self.conv, nn.ReLU())
            self.conv[1] = nn.ReLU6()


class MBConv(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added if the shapes allow it."""

    def __init__(self, in_channels: int, stage: Stage, stride: int, size: int) -> None:
        super().__init__()
        mid_channels = in_channels * stage.expand_ratio
        self.expand = ConvNorm(in_channels, mid_channels, size) if stage.expand_ratio != 1 else nn.Identity()
        self.depthwise = ConvNorm(mid_channels, mid_channels, size, stage.kernel_size, stride, groups=mid_channels)
        self.out_size = self.depthwise.out_size
        self.project = ConvNorm(mid_channels, stage.out_channels, self.out_size, relu6=False)
        self.is_residual = stride == 1 and in_channels == stage.out_channels
        if self.is_residual:
            self.skip_add = nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output, (N, C, H, W)."""
        y = self.project(self.depthwise(self.expand(x)))
        return self.skip_add.add(y, x) if self.is_residual else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite for images of one size.

    Args:
        width: Factor on the channels.
        depth: Factor on the repeats.
        image_size: Side of the input in pixels; the padding of the strided convolutions depends on it.
        n_classes: Number of outputs.
    """

    def __init__(self, width: float, depth: float, image_size: int, n_classes: int = 1000) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem = ConvNorm(3, STEM_CHANNELS, image_size, kernel_size=3, stride=2)
        channels, size = STEM_CHANNELS, self.stem.out_size
        blocks: list[MBConv] = []
        for stage in scale_stages(width, depth):
            for i in range(stage.repeats):
                blocks.append(MBConv(channels, stage, stage.stride if i == 0 else 1, size))
                channels, size = stage.out_channels, blocks[-1].out_size
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(channels, HEAD_CHANNELS, size)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD_CHANNELS, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits, (N, n_classes), of images, (N, 3, image_size, image_size)."""
        x = self.head(self.blocks(self.stem(self.quant(x))))
        return self.dequant(self.classifier(torch.flatten(self.pool(x), 1)))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses every convolution with its batch norm and activation, as torchvision's quantizable models do."""
        for module in list(self.modules()):
            if type(module) is ConvNorm:
                module.fuse_model(is_qat)
