"""torchvision's quantizable models, with its published weights.

`MODELS` are the original benchmark's, with its weights (IMAGENET1K_V1) and not torchvision's later recipes; `FURTHER`
are the rest, which only run when they are named. The builders are those of torchvision's ``quantization`` with
``quantize=False`` and no weights. ``weights.py`` loads the weights, so that it alone handles files, checksums and
failures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantvm.data.preprocess import Preprocessing
from quantvm.models.quantization import Quantization
from quantvm.models.registry import ModelSpec, QuantizedCheckpoint, WeightsFile
from quantvm.torch_compat import import_torchvision, quiet

if TYPE_CHECKING:
    from torch import nn

BASE_URL = "https://download.pytorch.org/models/"
PUBLISHED_BY = "torchvision"
BY_FBGEMM = Quantization()
"""How most of torchvision's checkpoints were quantized."""


def imagenet_preprocessing(resize: int, crop: int) -> Preprocessing:
    """Returns torchvision's preset for classification: bilinear, with ImageNet's mean and standard deviation."""
    return Preprocessing(
        resize=resize, crop=crop, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def torchvision_file(file_name: str, size_mb: float, folder: str = "") -> WeightsFile:
    """Returns one of torchvision's files; a name ``...-<hex>.pth`` gives the prefix of its checksum.

    Older names end in ``_<hex>.pth``; like torch.hub, we do not treat that as a checksum.
    """
    stem, dash, digits = file_name.removesuffix(".pth").rpartition("-")
    return WeightsFile(
        file_name=file_name,
        url=f"{BASE_URL}{folder}{file_name}",
        sha256=digits if dash and stem else None,
        size_bytes=round(size_mb * 2**20),
    )


def torchvision_quantized(
    file_name: str, size_mb: float, top1: float, top5: float, quantization: Quantization = BY_FBGEMM
) -> QuantizedCheckpoint:
    """Returns one of torchvision's quantized checkpoints; the accuracies are the published ones, in percent."""
    return QuantizedCheckpoint(torchvision_file(file_name, size_mb, "quantized/"), quantization, top1, top5)


def _builder(function_name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = import_torchvision().models.quantization
        with quiet():
            return getattr(models, function_name)(weights=None, quantize=False, **options).eval()

    return build


def _without_auxiliary_heads(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state_dict.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}


# The published GoogLeNet and Inception weights come from TensorFlow, which normalized inputs differently:
# transform_input converts them inside the model, as torchvision sets it for these weights. init_weights=False, because
# the models' random initialization (a truncated normal from scipy) takes seconds and is overwritten anyway.
_FROM_TENSORFLOW = {"transform_input": True, "aux_logits": False, "init_weights": False}

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="resnet18",
        title="resnet18",
        build=_builder("resnet18"),
        weights=torchvision_file("resnet18-f37072fd.pth", 44.661),
        preprocessing=imagenet_preprocessing(256, 224),
        published_top1=69.758,
        published_top5=89.078,
        published_by=PUBLISHED_BY,
        quantized=torchvision_quantized("resnet18_fbgemm_16fa66dd.pth", 11.238, 69.494, 88.882),
    ),
    ModelSpec(
        name="resnet50",
        title="resnet50",
        build=_builder("resnet50"),
        weights=torchvision_file("resnet50-0676ba61.pth", 97.781),
        preprocessing=imagenet_preprocessing(256, 224),
        published_top1=76.130,
        published_top5=92.862,
        published_by=PUBLISHED_BY,
        quantized=torchvision_quantized("resnet50_fbgemm_bf931d71.pth", 24.759, 75.920, 92.814),
    ),
    ModelSpec(
        name="mobilenet_v2",
        title="mobilenet_v2",
        build=_builder("mobilenet_v2"),
        weights=torchvision_file("mobilenet_v2-b0353104.pth", 13.555),
        preprocessing=imagenet_preprocessing(256, 224),
        published_top1=71.878,
        published_top5=90.286,
        published_by=PUBLISHED_BY,
        # Trained with quantization in the loop (QAT).
        quantized=torchvision_quantized(
            "mobilenet_v2_qnnpack_37f702c5.pth", 3.423, 71.658, 90.150, Quantization("per-tensor", "qnnpack")
        ),
    ),
    ModelSpec(
        name="inception_v3",
        title="inception_v3",
        build=_builder("inception_v3", **_FROM_TENSORFLOW),
        weights=torchvision_file("inception_v3_google-0cc3c7bd.pth", 103.903),
        preprocessing=imagenet_preprocessing(342, 299),
        published_top1=77.294,
        published_top5=93.450,
        published_by=PUBLISHED_BY,
        adapt_state_dict=_without_auxiliary_heads,
        quantized=torchvision_quantized("inception_v3_google_fbgemm-a2837893.pth", 23.146, 77.176, 93.354),
    ),
    ModelSpec(
        name="googlenet",
        title="googlenet",
        build=_builder("googlenet", **_FROM_TENSORFLOW),
        weights=torchvision_file("googlenet-1378be20.pth", 49.731),
        preprocessing=imagenet_preprocessing(256, 224),
        published_top1=69.778,
        published_top5=89.530,
        published_by=PUBLISHED_BY,
        adapt_state_dict=_without_auxiliary_heads,
        quantized=torchvision_quantized("googlenet_fbgemm-c81f6644.pth", 12.618, 69.826, 89.404),
    ),
)


def _further(
    name: str, builder: str, file: tuple[str, float], accuracy: tuple[float, float], resize: int,
    quantized: tuple[str, float], quantized_accuracy: tuple[float, float],
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        name=name,
        title=name,
        build=_builder(builder),
        weights=torchvision_file(*file),
        preprocessing=imagenet_preprocessing(resize, 224),
        published_top1=accuracy[0],
        published_top5=accuracy[1],
        published_by=PUBLISHED_BY,
        in_default_run=False,
        quantized=torchvision_quantized(*quantized, *quantized_accuracy),
    )


FURTHER: tuple[ModelSpec, ...] = (
    _further(
        "shufflenet_v2_x0_5", "shufflenet_v2_x0_5", ("shufflenetv2_x0.5-f707e7126e.pth", 5.282), (60.552, 81.746), 256,
        ("shufflenetv2_x0.5_fbgemm-00845098.pth", 1.501), (57.972, 79.78),
    ),
    _further(
        "shufflenet_v2_x1_0", "shufflenet_v2_x1_0", ("shufflenetv2_x1-5666bf0f80.pth", 8.791), (69.362, 88.316), 256,
        ("shufflenetv2_x1_fbgemm-1e62bb32.pth", 2.334), (68.36, 87.582),
    ),
    _further(
        "shufflenet_v2_x1_5", "shufflenet_v2_x1_5", ("shufflenetv2_x1_5-3c479a10.pth", 13.557), (72.996, 91.086), 232,
        ("shufflenetv2_x1_5_fbgemm-d7401f05.pth", 3.672), (72.052, 90.7),
    ),
    _further(
        "shufflenet_v2_x2_0", "shufflenet_v2_x2_0", ("shufflenetv2_x2_0-8be3c8ee.pth", 28.433), (76.23, 93.006), 232,
        ("shufflenetv2_x2_0_fbgemm-5cac526c.pth", 7.467), (75.354, 92.488),
    ),
    # The first recipe, as with resnet50; the later one is resnext101_32x8d_v2.
    _further(
        "resnext101_32x8d", "resnext101_32x8d", ("resnext101_32x8d-8ba56ff5.pth", 339.586), (79.312, 94.526), 256,
        ("resnext101_32x8_fbgemm_09835ccf.pth", 86.034), (78.986, 94.48),
    ),
    _further(
        "resnext101_32x8d_v2", "resnext101_32x8d", ("resnext101_32x8d-110c445d.pth", 339.673), (82.834, 96.228), 232,
        ("resnext101_32x8_fbgemm-ee16d00c.pth", 86.645), (82.574, 96.132),
    ),
    _further(
        "resnext101_64x4d", "resnext101_64x4d", ("resnext101_64x4d-173b62eb.pth", 319.318), (83.246, 96.454), 232,
        ("resnext101_64x4d_fbgemm-605a1cb3.pth", 81.556), (82.898, 96.326),
    ),
    _further(
        "resnet50_v2", "resnet50", ("resnet50-11ad3fa6.pth", 97.79), (80.858, 95.434), 232,
        ("resnet50_fbgemm-23753f79.pth", 24.953), (80.282, 94.976),
    ),
)  # fmt: skip
