"""A float module becomes a quantized one: PyTorch's eager-mode static quantization after training.

Which module is quantizable is the models' business; how a quantized module is imported is the frontend's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from quantvm.errors import ConfigError, DataError
from quantvm.progress import SILENT, Progress
from quantvm.torch_compat import quantization_engine, quiet

if TYPE_CHECKING:
    from torch import nn

Scheme = Literal["per-channel", "per-tensor"]
Engine = Literal["fbgemm", "x86", "onednn", "qnnpack"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
ENGINES: tuple[str, ...] = get_args(Engine)


def quantize(
    float_model: nn.Module,
    batches: Iterable[np.ndarray],
    *,
    scheme: str = "per-channel",
    engine: str = "fbgemm",
    progress: Progress = SILENT,
) -> nn.Module:
    """Returns the quantized module, calibrated on the batches; the given module is left untouched.

    Its attributes ``quantvm_engine``, ``quantvm_scheme`` and ``quantvm_n_calibration`` (images) say how it was made.

    Args:
        float_model: A quantizable module: stubs where tensors enter and leave, ``fuse_model()`` if it has anything to
            fuse.
        batches: Preprocessed images to calibrate on, each batch (N, 3, H, W), float32.
        scheme: "per-channel" (the engine's own choice of observers) or "per-tensor" (the original benchmark's).
        engine: The engine to pack the weights for.
        progress: Told of every batch.

    Raises:
        ConfigError: An unknown scheme or engine, an engine that this torch does not have, a module that is not
            quantizable, or no batch at all.
        DataError: A batch, or what the float model makes of it, holds NaN or an infinity.
    """
    import torch
    import torch.ao.quantization as tq

    qconfig = make_qconfig(scheme, engine)
    with quantization_engine(engine), quiet(), torch.no_grad():
        model = copy.deepcopy(float_model).eval()
        if hasattr(model, "fuse_model"):
            model.fuse_model()
        model.qconfig = qconfig
        _skip_observers_of_clamps(model)
        tq.prepare(model, inplace=True)
        n_images = _calibrate(model, batches, progress)
        with warnings.catch_warnings():
            # Of modules that the forward pass never reached, as the adders of blocks without a shortcut.
            warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
            tq.convert(model, inplace=True)
    _set_provenance(model, engine, scheme, n_images)
    return model


def make_qconfig(scheme: str, engine: str) -> Any:
    """Returns torch's QConfig for a scheme and an engine.

    - per-channel: the engine's default (histogram observers; fbgemm and x86 use 7 of the 8 bits of an activation, as
      their kernels without VNNI would saturate otherwise). qnnpack's default has one scale for all weights of a layer;
      here it gets a scale for each channel too, its activations stay.
    - per-tensor: the original benchmark's: moving averages of minimum and maximum over all 8 bits, and torch's default
      weight observer.

    Raises:
        ConfigError: An unknown scheme or engine.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown quantization scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if engine not in ENGINES:
        raise ConfigError(f"unknown quantized engine {engine!r}; expected one of {', '.join(ENGINES)}")
    import torch.ao.quantization as tq

    with quiet():
        if scheme == "per-tensor":
            activation = tq.MovingAverageMinMaxObserver.with_args(reduce_range=False)
            return tq.QConfig(activation=activation, weight=tq.default_weight_observer)
        default = tq.get_default_qconfig(engine)
        return tq.QConfig(activation=default.activation, weight=tq.default_per_channel_weight_observer)


def _skip_observers_of_clamps(model: nn.Module) -> None:
    """Spares ReLU6 its observer: its quantized form takes the scale of its input, so the work would be lost."""
    import torch.ao.quantization as tq
    from torch import nn

    for module in model.modules():
        if type(module) is nn.ReLU6:
            module.qconfig = tq.QConfig(activation=nn.Identity, weight=nn.Identity)


def _calibrate(model: nn.Module, batches: Iterable[np.ndarray], progress: Progress) -> int:
    """Runs the prepared model over every batch; returns the number of images."""
    import torch

    total = len(batches) if isinstance(batches, Sized) else None
    n_images = 0
    with progress.task("calibrate", total=total, unit="") as task:
        for index, x_f32 in enumerate(batches):
            _check_batch(x_f32, index)
            y = model(torch.from_numpy(np.ascontiguousarray(x_f32)))
            if not bool(torch.isfinite(y).all()):
                raise DataError(
                    f"calibration batch {index}: the float model's output holds NaN or infinity though its input does "
                    "not; its weights are damaged or of another model"
                )
            n_images += len(x_f32)
            task.advance()
    if not n_images:
        raise ConfigError("no calibration images: static quantization needs at least one batch")
    return n_images


def _check_batch(x_f32: np.ndarray, index: int) -> None:
    if x_f32.ndim != 4 or x_f32.dtype != np.float32 or not len(x_f32):
        raise DataError(
            f"calibration batch {index}: got shape {x_f32.shape}, {x_f32.dtype}; expected (N, 3, H, W), float32, N > 0"
        )
    n_bad = int(x_f32.size - np.isfinite(x_f32).sum())
    if n_bad:
        raise DataError(f"calibration batch {index}: {n_bad} of {x_f32.size} values are NaN or infinite")


def _set_provenance(model: nn.Module, engine: str, scheme: str, n_calibration: int) -> None:
    model.quantvm_engine, model.quantvm_scheme = engine, scheme
    model.quantvm_n_calibration = n_calibration
