"""The list of models, and that it says of torchvision's what torchvision says."""

import subprocess
import sys

import pytest

from quantvm.errors import UnknownNameError
from quantvm.models import MODELS, get_model, list_models
from quantvm.models.torchvision import torchvision_file
from quantvm.torch_compat import import_torchvision

FLOAT_ENUMS = {
    "resnet18": "ResNet18_Weights",
    "resnet50": "ResNet50_Weights",
    "mobilenet_v2": "MobileNet_V2_Weights",
    "inception_v3": "Inception_V3_Weights",
    "googlenet": "GoogLeNet_Weights",
    "mobilenet_v3_small": "MobileNet_V3_Small_Weights",
    "mobilenet_v3_large": "MobileNet_V3_Large_Weights",
    "shufflenet_v2_x0_5": "ShuffleNet_V2_X0_5_Weights",
    "shufflenet_v2_x1_0": "ShuffleNet_V2_X1_0_Weights",
    "shufflenet_v2_x1_5": "ShuffleNet_V2_X1_5_Weights",
    "shufflenet_v2_x2_0": "ShuffleNet_V2_X2_0_Weights",
    "resnext101_32x8d": "ResNeXt101_32X8D_Weights",
    "resnext101_32x8d_v2": "ResNeXt101_32X8D_Weights",
    "resnext101_64x4d": "ResNeXt101_64X4D_Weights",
    "resnet50_v2": "ResNet50_Weights",
}
QUANTIZED_ENUMS = {
    "resnet18": "ResNet18_QuantizedWeights",
    "resnet50": "ResNet50_QuantizedWeights",
    "mobilenet_v2": "MobileNet_V2_QuantizedWeights",
    "inception_v3": "Inception_V3_QuantizedWeights",
    "googlenet": "GoogLeNet_QuantizedWeights",
    "mobilenet_v3_large": "MobileNet_V3_Large_QuantizedWeights",
    "shufflenet_v2_x0_5": "ShuffleNet_V2_X0_5_QuantizedWeights",
    "shufflenet_v2_x1_0": "ShuffleNet_V2_X1_0_QuantizedWeights",
    "shufflenet_v2_x1_5": "ShuffleNet_V2_X1_5_QuantizedWeights",
    "shufflenet_v2_x2_0": "ShuffleNet_V2_X2_0_QuantizedWeights",
    "resnext101_32x8d": "ResNeXt101_32X8D_QuantizedWeights",
    "resnext101_32x8d_v2": "ResNeXt101_32X8D_QuantizedWeights",
    "resnext101_64x4d": "ResNeXt101_64X4D_QuantizedWeights",
    "resnet50_v2": "ResNet50_QuantizedWeights",
}


def _version(name):
    return "_V2" if name.endswith("_v2") and name != "mobilenet_v2" else "_V1"


def test_the_original_six_come_first_in_its_order_and_under_its_titles():
    assert [spec.title for spec in list_models()][:6] == [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "inception_v3",
        "googlenet",
        "mobilenet_v3 small",
    ]
    assert [spec.name for spec in MODELS[6:9]] == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    assert len([spec for spec in MODELS if spec.in_default_run]) == 9
    assert all(spec.in_default_run for spec in MODELS[:9])


def test_names_are_unique_and_found():
    assert len({spec.name for spec in MODELS}) == len(MODELS)
    assert all(get_model(spec.name) is spec for spec in MODELS)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("resnet-18", "resnet18"),
        ("MobileNet V3 Small", "mobilenet_v3_small"),
        ("efficientnet-lite2", "efficientnet_lite2"),
        ("inceptionv3", "inception_v3"),
    ],
)
def test_unknown_name_gets_the_nearest_and_the_list(asked, nearest):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'") as error:
        get_model(asked)
    assert all(spec.name in str(error.value) for spec in MODELS)


def test_far_name_gets_no_suggestion():
    with pytest.raises(UnknownNameError) as error:
        get_model("yolo")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("name", FLOAT_ENUMS)
def test_float_weights_are_torchvisions(name):
    spec = get_model(name)
    published = getattr(import_torchvision().models, FLOAT_ENUMS[name])["IMAGENET1K" + _version(name)]
    _assert_same_file(spec.weights, published)
    assert spec.published_top1 == published.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert spec.published_top5 == published.meta["_metrics"]["ImageNet-1K"]["acc@5"]
    transforms, ours = published.transforms(), spec.preprocessing
    assert (transforms.resize_size, transforms.crop_size) == ([ours.resize], [ours.crop])
    assert transforms.interpolation.value == ours.interpolation
    assert (tuple(transforms.mean), tuple(transforms.std)) == (ours.mean, ours.std)


@pytest.mark.parametrize("name", QUANTIZED_ENUMS)
def test_quantized_checkpoints_are_torchvisions(name):
    spec = get_model(name)
    enum = getattr(import_torchvision().models.quantization, QUANTIZED_ENUMS[name])
    published = next(member for member in enum if member.name.endswith(_version(name)))
    _assert_same_file(spec.quantized.weights, published)
    assert spec.quantized.quantization.engine == published.meta["backend"]
    assert spec.quantized.published_top1 == published.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert spec.quantized.published_top5 == published.meta["_metrics"]["ImageNet-1K"]["acc@5"]
    transforms, ours = published.transforms(), spec.preprocessing
    assert (transforms.resize_size, transforms.crop_size) == ([ours.resize], [ours.crop])


def _assert_same_file(ours, published):
    assert ours.url == published.url
    assert ours.url.rsplit("/", 1)[1] == ours.file_name
    assert ours.size_bytes == pytest.approx(published.meta["_file_size"] * 2**20, abs=1)


def test_checksum_comes_from_names_that_torch_hub_checks_too():
    assert torchvision_file("resnet18-f37072fd.pth", 1).sha256 == "f37072fd"
    assert torchvision_file("resnet18_fbgemm_16fa66dd.pth", 1).sha256 is None


def test_listing_imports_no_framework():
    code = (
        "import sys, quantvm.models.weights, quantvm.models.quantize\n"
        "from quantvm.models import list_models\n"
        "assert len(list_models()) > 9\n"
        "print([name for name in ('torch', 'torchvision', 'tvm') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
