"""MobileNetV3-small, quantizable; torchvision publishes only the large one so, and the float weights of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantvm.models.registry import ModelSpec
from quantvm.models.torchvision import PUBLISHED_BY, imagenet_preprocessing, torchvision_file
from quantvm.torch_compat import import_torchvision, quiet

if TYPE_CHECKING:
    from torch import nn


def build_mobilenet_v3_small() -> nn.Module:
    """Returns the quantizable float module, built from torchvision's own blocks; the float weights' keys fit it."""
    import_torchvision()
    # _mobilenet_v3_conf is torchvision's table of the blocks; it has no public name.
    from torchvision.models.mobilenetv3 import _mobilenet_v3_conf
    from torchvision.models.quantization.mobilenetv3 import QuantizableInvertedResidual, QuantizableMobileNetV3
    from torchvision.models.quantization.utils import _replace_relu

    blocks, last_channel = _mobilenet_v3_conf("mobilenet_v3_small")
    with quiet():
        model = QuantizableMobileNetV3(blocks, last_channel, block=QuantizableInvertedResidual)
    _replace_relu(model)  # as torchvision does for the large one: in-place ReLUs become ordinary ones
    return model.eval()


MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mobilenet_v3_small",
        title="mobilenet_v3 small",
        build=build_mobilenet_v3_small,
        weights=torchvision_file("mobilenet_v3_small-047dcff4.pth", 9.829),
        preprocessing=imagenet_preprocessing(256, 224),
        published_top1=67.668,
        published_top5=87.402,
        published_by=PUBLISHED_BY,
    ),
)
