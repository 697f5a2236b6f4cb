"""The benchmarked models: their registry, their weights, and their quantization in PyTorch.

The list has the order of the reports: the original benchmark's six, then the models whose weights are packages, then
those that only run when they are named.
Reading the registry imports no torch.
"""

from __future__ import annotations

import difflib

from quantvm.errors import UnknownNameError
from quantvm.models import efficientnet_lite, mobilenet_v3, torchvision, torchvision_float
from quantvm.models.registry import ModelSpec, QuantizedCheckpoint, WeightsFile

__all__ = ["MODELS", "ModelSpec", "QuantizedCheckpoint", "WeightsFile", "get_model", "list_models"]

MODELS: tuple[ModelSpec, ...] = (
    *torchvision.MODELS,
    mobilenet_v3.SMALL,
    *efficientnet_lite.MODELS,
    mobilenet_v3.LARGE,
    *torchvision.FURTHER,
    *torchvision_float.MODELS,
)


def list_models() -> tuple[ModelSpec, ...]:
    """Returns every model that the benchmark knows, in the order of its reports."""
    return MODELS


def get_model(name: str) -> ModelSpec:
    """Returns the model of that name.

    Raises:
        UnknownNameError: No model has that name; the message lists the names and the nearest one.
    """
    by_name = {spec.name: spec for spec in MODELS}
    if name in by_name:
        return by_name[name]
    spelled = name.strip().lower().replace("-", "_").replace(" ", "_")
    nearest = difflib.get_close_matches(spelled, by_name, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UnknownNameError(f"unknown model {name!r}.{hint} Known models: {', '.join(by_name)}")
