"""torchvision's models without a quantizable form: FX graph mode and PT2E quantize them unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantvm.choices import Interpolation
from quantvm.data.preprocess import Preprocessing
from quantvm.models.registry import ModelSpec
from quantvm.models.torchvision import PUBLISHED_BY, torchvision_file
from quantvm.torch_compat import import_torchvision, quiet

if TYPE_CHECKING:
    from torch import nn


def _builder(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with quiet():
            return getattr(import_torchvision().models, name)(weights=None).eval()

    return build


def _spec(
    name: str, file_name: str, size_mb: float, top1: float, top5: float, resize: int = 256,
    interpolation: Interpolation = "bilinear",
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        name=name,
        title=name,
        build=_builder(name),
        weights=torchvision_file(file_name, size_mb),
        preprocessing=Preprocessing(
            resize=resize, crop=224, interpolation=interpolation, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        published_top1=top1,
        published_top5=top5,
        published_by=PUBLISHED_BY,
        in_default_run=False,
        flows=("fx", "pt2e"),
    )


MODELS: tuple[ModelSpec, ...] = (
    _spec("vit_b_16", "vit_b_16-c867db91.pth", 330.285, 81.072, 95.318),
    _spec("swin_t", "swin_t-704ceda3.pth", 108.190, 81.474, 95.776, 232, "bicubic"),
    _spec("convnext_tiny", "convnext_tiny-983f1562.pth", 109.119, 82.520, 96.146, 236),
    _spec("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", 20.451, 77.692, 93.532, 256, "bicubic"),
    _spec("densenet121", "densenet121-a639ec97.pth", 30.845, 74.434, 91.972),
    _spec("regnet_y_400mf", "regnet_y_400mf-c65dace8.pth", 16.806, 74.046, 91.716),
)
