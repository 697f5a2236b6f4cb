"""Every model of the registry builds, fuses, quantizes, runs and traces, with random weights and small images."""

import warnings

import pytest
import torch
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.ao.nn.quantized import Conv2d, Linear, Quantize

from quantvm.compiler import compile as compile_model
from quantvm.frontend import import_layers
from quantvm.frontend.exported.layers import import_exported_layers
from quantvm.frontend.source import Source
from quantvm.models import MODELS, get_model
from quantvm.models.quantize import quantize
from quantvm.models.weights import build_float_model, resolve_weights
from quantvm.torch_compat import import_torchvision
from quantvm.verification.layer_runs import TorchLayerRun, TvmLayerRun
from quantvm.verification.torch_state import TorchState
from tests.models.conftest import noise_batches

N_CONVOLUTIONS = {
    "resnet18": 20,
    "resnet50": 53,
    "mobilenet_v2": 52,
    "inception_v3": 94,
    "googlenet": 57,
    "mobilenet_v3_small": 52,
    "efficientnet_lite0": 49,
    "efficientnet_lite1": 64,
    "efficientnet_lite2": 64,
    "mobilenet_v3_large": 62,
    "shufflenet_v2_x0_5": 56,
    "shufflenet_v2_x1_0": 56,
    "shufflenet_v2_x1_5": 56,
    "shufflenet_v2_x2_0": 56,
    "resnext101_32x8d": 104,
    "resnext101_32x8d_v2": 104,
    "resnext101_64x4d": 104,
    "resnet50_v2": 53,
}


# Of models that differ in their weights, their width or their depth alone, one is enough for every day.
_LIKE_ANOTHER = (
    "resnet18", "resnext101_32x8d", "mobilenet_v3_large",
    "efficientnet_lite1", "efficientnet_lite2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "resnext101_32x8d_v2", "resnext101_64x4d", "resnet50_v2",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(spec.name, marks=pytest.mark.nightly) if spec.name in _LIKE_ANOTHER else spec.name
        for spec in MODELS
        if "eager" in spec.flows
    ],
)
def test_model_quantizes_runs_and_traces(name):
    spec = get_model(name)
    batches = noise_batches(1, 2, side=96)
    x = torch.from_numpy(batches[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_float_model(spec, resolve_weights(spec, "random"), batches)
        quantized = quantize(model, batches)
    modules = [type(module) for module in quantized.modules()]
    assert sum(kind in (Conv2d, ConvReLU2d) for kind in modules) == N_CONVOLUTIONS[name]
    assert modules.count(Linear) == (2 if name.startswith("mobilenet_v3") else 1)
    assert modules.count(Quantize) == 1
    assert not [kind for kind in modules if kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)]
    with torch.no_grad():
        actual = quantized(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(quantized, x)
        assert torch.equal(traced(x), actual)
        assert torch.equal(traced(x[:1]), actual[:1])
    assert actual.shape == (2, 1000)
    assert actual.unique().numel() > 20


WITHOUT_EAGER_FORM = [spec.name for spec in MODELS if "eager" not in spec.flows]


def _float_model(name):
    spec = get_model(name)
    batches = noise_batches(1, 2, side=224 if name == "vit_b_16" else 96)
    return build_float_model(spec, resolve_weights(spec, "random"), batches), batches


@pytest.mark.nightly
@pytest.mark.parametrize("name", WITHOUT_EAGER_FORM)
def test_model_without_an_eager_form_by_fx(name):
    model, batches = _float_model(name)
    x = torch.from_numpy(batches[0])
    quantized = quantize(model, batches, flow="fx")
    artifact = compile_model(quantized, x, cache=False)
    with torch.inference_mode():
        expected = quantized(x)
    # PyTorch leaves Swin's whole attention in float, and ViT's
    assert artifact.report.int8_mac_share > (0.45 if name == "swin_t" else 0.5)
    if name != "vit_b_16":  # see the next test
        assert torch.nn.functional.cosine_similarity(artifact(x), expected).min() > 0.99


@pytest.mark.nightly
def test_each_layer_of_a_transformer_by_fx_differs_by_a_step_at_most():
    """Sums of its float attention end next to ties, and random weights hand a step on to all outputs."""
    model, batches = _float_model("vit_b_16")
    x = torch.from_numpy(batches[0])
    program = import_layers(Source(quantize(model, batches, flow="fx"), x))
    _assert_a_step_at_most(program, "torch", batches[0], largest_share=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", WITHOUT_EAGER_FORM)
def test_each_layer_of_a_model_by_pt2e_differs_by_a_step_at_most(name):
    """From PyTorch's own integers: float sums carry a few over ties, which random weights would hand on to all."""
    model, batches = _float_model(name)
    x = torch.from_numpy(batches[0])
    program = import_exported_layers(quantize(model, batches, flow="pt2e"), [x])
    _assert_a_step_at_most(program, "qdq", batches[0], largest_share=0.02)


def _assert_a_step_at_most(program, numerics, x, *, largest_share):
    torch_run = TorchLayerRun(program, TorchState(program.engine, 1))
    expected, formats = torch_run.chained(x), torch_run.channels_last(x)
    run = TvmLayerRun(
        program, numerics=numerics, state=TorchState(program.engine, 1), channels_last=formats, target="native"
    )
    for layer, a, e in zip(program.layers, run.isolated(x, expected), expected, strict=True):
        apart = abs(a.astype(int) - e.astype(int))
        assert apart.max() <= 1, layer.name
        assert (apart > 0).mean() < largest_share, layer.name


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_input_is_transformed_as_for_the_published_weights(name):
    model = get_model(name).build()
    assert model.transform_input
    assert not model.aux_logits


def test_auxiliary_heads_of_the_published_files_are_dropped():
    adapt = get_model("googlenet").adapt_state_dict
    assert adapt({"aux1.conv.weight": 0, "aux2.fc.bias": 1, "conv1.weight": 2}) == {"conv1.weight": 2}
    assert get_model("inception_v3").adapt_state_dict({"AuxLogits.fc.weight": 0, "fc.bias": 1}) == {"fc.bias": 1}


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_published_mobilenet_v3_keys_fit(name):
    published = getattr(import_torchvision().models, name)(weights=None).eval()
    model = get_model(name).build()
    model.load_state_dict(published.state_dict(), strict=True)
    x = torch.from_numpy(noise_batches(1, side=64)[0])
    with torch.no_grad():
        assert torch.allclose(model(x), published(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "googlenet", "inception_v3"])
def test_published_torchvision_keys_fit(name):
    """torchvision's float model has the keys of the published file; after the adaption ours has the same."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    published = getattr(import_torchvision().models, name)(weights=None, **options).state_dict()
    spec = get_model(name)
    adapted = spec.adapt_state_dict(published) if spec.adapt_state_dict else published
    assert adapted.keys() == spec.build().state_dict().keys()
