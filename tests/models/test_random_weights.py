"""Random weights: repeatable, and such that every layer has something to do."""

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.errors import DataError
from quantvm.models import get_model
from quantvm.models.random_weights import MAX_IMAGES, build_random_model
from quantvm.models.weights import build_float_model, resolve_weights
from tests.models.conftest import noise_batches


def build(spec, batches, seed=0):
    return build_float_model(spec, resolve_weights(spec, "random"), batches, seed)


def test_seed_decides_and_the_global_generator_is_untouched(tiny_spec):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (build(tiny_spec, noise_batches(), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert torch.equal(first.norm.running_var, again.norm.running_var)
    assert not torch.equal(first.conv.weight, other.conv.weight)


def test_batch_norm_holds_the_statistics_of_the_images(tiny_spec):
    batches = noise_batches(2, 4)
    model = build(tiny_spec, [3 * batch + 1 for batch in batches])
    with torch.no_grad():
        y = model.conv(3 * torch.from_numpy(np.concatenate(batches)) + 1)
    assert torch.allclose(model.norm.running_mean, y.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model.norm.running_var, y.var((0, 2, 3)), rtol=0.1)
    assert model.norm.momentum == 0.1
    assert not model.training


def test_only_so_many_images_are_taken(tiny_spec):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 10
            yield noise_batches(1, 10)[0]

    build(tiny_spec, endless())
    assert taken == -(-MAX_IMAGES // 10) * 10


def test_noise_stands_in_for_missing_images(tiny_spec):
    assert torch.equal(build_random_model(tiny_spec).fc.weight, build_random_model(tiny_spec).fc.weight)


def test_no_images_at_all(tiny_spec):
    with pytest.raises(DataError, match="no calibration images"):
        build(tiny_spec, [])


def test_deep_network_is_busy_to_its_end():
    batches = noise_batches(2, 4, side=96)
    model = build(get_model("resnet18"), batches)
    variances = [m.running_var.mean().item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert min(variances) > 1e-2
    assert max(variances) < 1e3
    with torch.no_grad():
        logits = model(torch.from_numpy(batches[0]))
    assert len(set(logits.argmax(1).tolist())) > 1
    assert 1 < logits.std() < 10


def test_what_begins_as_a_constant_hides_nothing():
    """ViT's head and class token are zeros, and ConvNeXt scales its blocks by 1e-6, until they are trained."""
    batches = noise_batches(1, 2, side=32)
    model = build(get_model("convnext_tiny"), batches)
    constant = [name for name, p in model.named_parameters() if p.ndim > 1 and len(p.unique()) == 1]
    assert constant == []
    assert len(model.features[0][1].weight.unique()) > 1
    with torch.no_grad():
        assert 1 < model(torch.from_numpy(batches[0])).std() < 10


@pytest.mark.parametrize("n_images", [1, 5])
def test_logits_have_the_deviation_of_trained_networks(tiny_spec, n_images):
    batches = noise_batches(1, n_images)
    with torch.no_grad():
        logits = build(tiny_spec, batches)(torch.from_numpy(batches[0]))
    assert logits.std() == pytest.approx(3, rel=1e-3)
    assert logits.mean() == pytest.approx(0, abs=1e-3)
