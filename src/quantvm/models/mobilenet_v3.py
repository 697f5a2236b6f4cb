"""Quantizable MobileNetV3, small and large; for the small one torchvision publishes only float weights.

The large one was not in the original benchmark; ``quantvm run`` takes it when it is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantvm.models.quantization import Quantization
from quantvm.models.registry import ModelSpec
from quantvm.models.torchvision import (
    PUBLISHED_BY,
    imagenet_preprocessing,
    torchvision_file,
    torchvision_quantized,
)
from quantvm.torch_compat import import_torchvision, quiet

if TYPE_CHECKING:
    from torch import nn


def _builder(name: str) -> Callable[[], nn.Module]:
    """Returns a function that builds the float module from torchvision's blocks, with its published weights' keys."""

    def build() -> nn.Module:
        import_torchvision()
        # _mobilenet_v3_conf is torchvision's table of the blocks; it has no public name.
        from torchvision.models.mobilenetv3 import _mobilenet_v3_conf
        from torchvision.models.quantization.mobilenetv3 import QuantizableInvertedResidual, QuantizableMobileNetV3
        from torchvision.models.quantization.utils import _replace_relu

        blocks, last_channel = _mobilenet_v3_conf(name)
        with quiet():
            model = QuantizableMobileNetV3(blocks, last_channel, block=QuantizableInvertedResidual)
        _replace_relu(model)  # as torchvision's builder does: in-place ReLUs become ordinary ones
        return model.eval()

    return build


SMALL = ModelSpec(
    name="mobilenet_v3_small",
    title="mobilenet_v3 small",
    build=_builder("mobilenet_v3_small"),
    weights=torchvision_file("mobilenet_v3_small-047dcff4.pth", 9.829),
    preprocessing=imagenet_preprocessing(256, 224),
    published_top1=67.668,
    published_top5=87.402,
    published_by=PUBLISHED_BY,
)
LARGE = ModelSpec(
    name="mobilenet_v3_large",
    title="mobilenet_v3 large",
    build=_builder("mobilenet_v3_large"),
    weights=torchvision_file("mobilenet_v3_large-8738ca79.pth", 21.114),
    preprocessing=imagenet_preprocessing(256, 224),
    published_top1=74.042,
    published_top5=91.340,
    published_by=PUBLISHED_BY,
    in_default_run=False,
    # Trained with quantization in the loop (QAT).
    quantized=torchvision_quantized(
        "mobilenet_v3_large_qnnpack-5bcacf28.pth", 21.554, 73.004, 90.858, Quantization("per-tensor", "qnnpack")
    ),
)
