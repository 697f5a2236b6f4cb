"""Random weights with realistic activations in every layer, for parity and latency without any download.

With plain random initialization the activations of deep networks vanish or explode, and outputs are equal for all
images; both would make parity look better than it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from quantvm.errors import DataError
from quantvm.models.registry import ModelSpec

if TYPE_CHECKING:
    from torch import nn

MAX_IMAGES = 64  # more hardly change the statistics, and each costs a pass through the float network
_LOGIT_STD = 3.0  # about what trained networks have


def build_random_model(
    spec: ModelSpec, calibration_batches: Iterable[np.ndarray] | None = None, seed: int = 0
) -> nn.Module:
    """Returns the float module with seeded weights and batch-norm statistics from the first images.

    The classifier is scaled and shifted so that the logits have mean 0 and standard deviation 3 over these images, or,
    for a single image, over its classes. The same seed and images give the same weights.

    Args:
        spec: The model.
        calibration_batches: Each (N, 3, H, W), float32; at most 64 images are used. None: seeded noise.
        seed: Seed of the weights and of the noise.
    """
    import torch

    batches = _first_images(spec, calibration_batches, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = spec.build()
        _initialize(model)
        _estimate_batch_norm(model, batches)
        _spread_logits(model, batches)
    return model.eval()


def _first_images(spec: ModelSpec, batches: Iterable[np.ndarray] | None, seed: int) -> list[np.ndarray]:
    if batches is None:
        side = spec.preprocessing.crop
        return [np.random.default_rng(seed).standard_normal((4, 3, side, side)).astype(np.float32)]
    taken: list[np.ndarray] = []
    for batch in batches:
        taken.append(batch[: MAX_IMAGES - sum(map(len, taken))])
        if sum(map(len, taken)) >= MAX_IMAGES:
            break
    if not taken:
        raise DataError("no calibration images: random weights need some to estimate the batch-norm statistics")
    return taken


def _initialize(model: nn.Module) -> None:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for parameter in model.parameters():
        if parameter.ndim > 1 and bool((parameter == parameter.flatten()[0]).all()):
            # ViT begins with a head and a class token of zeros, ConvNeXt with blocks that are scaled by 1e-6
            nn.init.normal_(parameter, 0, 0.3)


def _estimate_batch_norm(model: nn.Module, batches: list[np.ndarray]) -> None:
    """Sets every running mean and variance to the average over the batches; each layer sees normalized input."""
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    for batch in batches:
        model(torch.from_numpy(np.ascontiguousarray(batch)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _spread_logits(model: nn.Module, batches: list[np.ndarray]) -> None:
    import torch
    from torch import nn

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    logits = torch.cat([model(torch.from_numpy(np.ascontiguousarray(batch))) for batch in batches])
    # a single image has no deviation between images: that between its classes is used
    middle = logits.mean(0) if len(logits) > 1 else logits.mean()
    factor = _LOGIT_STD / float((logits - middle).std().clamp_min(1e-6))
    bias = last.bias
    assert bias is not None
    last.weight.mul_(factor)
    bias.sub_(middle).mul_(factor)
