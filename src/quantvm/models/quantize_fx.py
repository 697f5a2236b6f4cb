"""PyTorch's FX graph mode: `prepare_fx`, calibration, `convert_fx`. Operators that it does not quantize stay float."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from quantvm.models.quantization import Quantization


def quantize_fx(model: nn.Module, how: Quantization, calibrate: Callable[[nn.Module], None]) -> nn.Module:
    """Returns the quantized `GraphModule`; the given module, float and in evaluation mode, is left untouched.

    Args:
        model: any module that torch.fx can trace; stubs for eager mode are removed.
        how: its configuration is for all layers; its engine is active, and the engine's default mapping says which
            operators have fixed parameters.
        calibrate: runs the prepared module over the calibration images.
    """
    mapping = tq.get_default_qconfig_mapping(how.engine).set_global(how.qconfig())
    example = (torch.zeros(1, 3, 224, 224),)  # prepare_fx traces symbolically: only the number of inputs counts
    prepared = prepare_fx(without_stubs(copy.deepcopy(model)), mapping, example)
    calibrate(prepared)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        return convert_fx(prepared)


def without_stubs(model: nn.Module) -> nn.Module:
    """Removes, in place, what only eager mode needs: stubs become identities, FloatFunctionals plain operators."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (tq.QuantStub, tq.DeQuantStub)):
                setattr(module, name, nn.Identity())
            elif type(child) is nn.quantized.FloatFunctional:
                setattr(module, name, nn.quantized.FXFloatFunctional())
    return model
