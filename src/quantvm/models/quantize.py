"""Quantizes a float module: PyTorch's static post-training quantization, by each of its flows.

Eager mode is here, the others are in `quantize_fx.py` and `quantize_pt2e.py`. This module also loads published
checkpoints of already quantized models, which need no calibration. The models' own files make them quantizable; the
frontend imports quantized modules.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import ConfigError, DataError, WeightsError, missing_package_named, stage
from quantvm.models.quantization import Quantization
from quantvm.models.registry import ModelSpec
from quantvm.models.weights import ResolvedWeights, load_into, read_state_dict
from quantvm.progress import SILENT, Progress
from quantvm.torch_compat import quantization_engine, quiet

if TYPE_CHECKING:
    import torch
    from torch import nn


@missing_package_named()
def quantize(
    float_model: nn.Module,
    batches: Iterable[np.ndarray | torch.Tensor],
    *,
    scheme: str = "per-channel",
    engine: str = "fbgemm",
    flow: str = "eager",
    progress: Progress = SILENT,
) -> Any:
    """Returns the quantized module, calibrated on the batches; the given module is left untouched.

    The flow pt2e returns an exported program with uint8 activations and per-channel int8 weights, which is for no
    engine. The attributes ``quantvm_engine``, ``quantvm_scheme`` and ``quantvm_n_calibration`` (images)
    say how it was made.

    Args:
        float_model: A quantizable module: stubs where tensors enter and leave, ``fuse_model()`` if it has anything to
            fuse.
        batches: Preprocessed calibration images, each batch (N, 3, H, W), float32, from NumPy or torch on the CPU.
        scheme: "per-channel" (the engine's own choice of observers) or "per-tensor" (the original benchmark's).
        engine: The engine to pack the weights for.
        flow: "eager", "fx" or "pt2e"; the latter two take any module that PyTorch can trace or export.
        progress: Shows every batch.

    Raises:
        ConfigError: An unknown scheme, engine or flow, an engine that this torch does not have, a module that is not
            quantizable, or no batch at all.
        DataError: A batch is not (N, 3, H, W) float32, or holds NaN or infinity, or the float model overflows on it.
        WeightsError: The float model's weights hold NaN or infinity.
    """
    return quantize_by(Quantization(scheme, engine, flow), float_model, batches, progress)


def quantize_by(
    how: Quantization, float_model: nn.Module, batches: Iterable[np.ndarray | torch.Tensor], progress: Progress
) -> Any:
    """Returns what `quantize` does."""
    import torch

    how.check_flow()
    qconfig = how.qconfig()
    _check_float(float_model, needs_stubs=how.flow == "eager")
    n_images = 0

    def calibrate(prepared: nn.Module) -> None:
        nonlocal n_images
        n_images = _calibrate(prepared, batches, progress)

    doing = f"quantizing the {type(float_model).__name__} by the flow {how.flow}"
    remedy = "check that the float model runs on such images in PyTorch, or take another flow"
    with stage(doing, ConfigError, remedy), quantization_engine(how.engine), quiet(), torch.no_grad():
        if how.flow == "eager":
            model: Any = copy.deepcopy(float_model).eval()
            _prepare(model, qconfig)
            calibrate(model)
            _convert(model, how)
        elif how.flow == "fx":
            from quantvm.models.quantize_fx import quantize_fx

            model = quantize_fx(float_model, how, calibrate)
        else:
            from quantvm.models.quantize_pt2e import quantize_pt2e

            batches = list(batches)
            model = quantize_pt2e(float_model, _example(batches), calibrate)
            how = replace(how, engine="pt2e", scheme="per-channel")
    how.mark(model, n_images)
    return model


def _example(batches: list[np.ndarray | torch.Tensor]) -> Any:
    """Returns an example batch of two images of the batches' size."""
    import torch

    if not batches:
        raise ConfigError(_NO_IMAGES)
    return torch.zeros(2, *batches[0].shape[1:])


def load_quantized_model(spec: ModelSpec, weights: ResolvedWeights, *, engine: str | None = None) -> nn.Module:
    """Returns the quantized module of a published checkpoint, without calibration.

    Its attributes ``quantvm_engine``, ``quantvm_scheme`` and ``quantvm_n_calibration`` (0) say how it was made.

    Args:
        spec: A model for which torchvision publishes a quantized checkpoint.
        weights: Of kind "quantized", as ``resolve_weights(spec, "torchvision-quantized")`` returns them.
        engine: The engine to pack the weights for; None: the one that the checkpoint was made for.

    Raises:
        ConfigError: An unknown engine, or one that this torch does not have.
        WeightsError: There is no such checkpoint, or the file is damaged or belongs to another model.
    """
    import torch

    if spec.quantized is None or weights.path is None or weights.kind != "quantized":
        raise WeightsError(
            f"{spec.name}: got {weights.kind} weights ({weights.source}), expected a quantized checkpoint; quantize "
            "float weights with quantize(), or choose a model that has one with --weights torchvision-quantized"
        )
    made_by = spec.quantized.quantization
    how = replace(made_by, engine=engine or made_by.engine)
    qconfig = how.qconfig()
    state_dict = read_state_dict(weights.path, spec)
    with quantization_engine(how.engine), quiet(), torch.no_grad():
        model = spec.build()
        _prepare(model, qconfig)
        _convert(model, how)
        load_into(model, state_dict, f"the quantized {spec.name}", weights.path)
    how.mark(model, 0)
    return model.eval()


def _check_float(model: nn.Module, *, needs_stubs: bool) -> None:
    import torch
    from torch.ao.nn.quantized import Quantize
    from torch.ao.quantization import QuantStub

    kinds = {type(module) for module in model.modules()}
    if Quantize in kinds:
        raise ConfigError(f"{type(model).__name__} is quantized already; pass the float module it was made from")
    if needs_stubs and QuantStub not in kinds:
        raise ConfigError(
            f"{type(model).__name__} is not quantizable: it has no QuantStub, so nothing in it would meet quantized "
            "input. Take the model from torchvision.models.quantization, or wrap it in "
            "torch.ao.quantization.QuantWrapper if it neither adds, multiplies nor concatenates tensors itself, or "
            "quantize it by flow='fx' or 'pt2e', which need no stubs"
        )
    damaged = [
        name
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if damaged:
        shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        raise WeightsError(
            f"{len(damaged)} tensors of {type(model).__name__} hold NaN or infinity: {shown}; the weights are damaged"
        )


_NO_IMAGES = "no calibration images: static quantization needs at least one batch"


def _prepare(model: nn.Module, qconfig: Any) -> None:
    """Fuses and inserts the observers, in place."""
    import torch.ao.quantization as tq
    from torch import nn

    fuse_model = getattr(model, "fuse_model", None)
    if fuse_model is not None:
        fuse_model()
    model.qconfig = qconfig
    for module in model.modules():
        if type(module) is nn.ReLU6:
            # Its quantized form takes the scale of its input: an observer would have no effect.
            module.qconfig = tq.QConfig(activation=nn.Identity, weight=nn.Identity)
    tq.prepare(model, inplace=True)


def _convert(model: nn.Module, how: Quantization) -> None:
    """Replaces the observed modules by quantized ones, in place."""
    import torch.ao.quantization as tq

    with warnings.catch_warnings():
        # torch warns about modules that the forward pass never reaches, such as the adders of blocks without a
        # shortcut, and about all modules before a checkpoint is loaded.
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        tq.convert(model, inplace=True)
    if how.engine == "qnnpack":
        from quantvm.models.qnnpack_relu6 import replace_relu6

        replace_relu6(model)


def _calibrate(model: nn.Module, batches: Iterable[np.ndarray | torch.Tensor], progress: Progress) -> int:
    """Runs the prepared model over every batch; returns the number of images."""
    import torch

    total = len(batches) if isinstance(batches, Sized) else None
    n_images = 0
    with progress.task("calibrate", total=total, unit="") as task:
        for index, batch in enumerate(batches):
            x_f32 = _checked_batch(batch, index)
            overflow = f"calibration batch {index}: the float model overflows to NaN or infinity on it"
            try:
                y = model(torch.from_numpy(np.ascontiguousarray(x_f32)))
            except RuntimeError as error:  # a histogram observer raises it; other observers do not
                if "is not finite" in str(error):
                    raise DataError(f"{overflow}: its values are too large, or the weights are") from error
                raise
            if isinstance(y, torch.Tensor) and not bool(torch.isfinite(y).all()):
                raise DataError(f"{overflow}: its values are too large, or the weights are")
            n_images += len(x_f32)
            task.advance()
    if not n_images:
        raise ConfigError(_NO_IMAGES)
    return n_images


def _checked_batch(batch: Any, index: int) -> np.ndarray:
    import torch

    is_tensor = isinstance(batch, torch.Tensor) and batch.is_cpu and batch.dtype == torch.float32
    x_f32 = batch.detach().numpy() if is_tensor else batch
    if not isinstance(x_f32, np.ndarray) or x_f32.ndim != 4 or x_f32.dtype != np.float32 or not len(x_f32):
        facts = [str(getattr(batch, name)) for name in ("dtype", "device") if hasattr(batch, name)]
        shape = f" of shape {tuple(batch.shape)}" if hasattr(batch, "shape") else ""
        raise DataError(
            f"calibration batch {index}: got {' '.join([*facts, type(batch).__name__])}{shape}; expected "
            "(N, 3, H, W), float32, N > 0, as a NumPy array or a torch tensor on the CPU"
        )
    n_bad = int(x_f32.size - np.isfinite(x_f32).sum())
    if n_bad:
        raise DataError(f"calibration batch {index}: {n_bad} of {x_f32.size} values are NaN or infinite")
    return x_f32
