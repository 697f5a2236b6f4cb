"""PyTorch's export path: `torch.export`, torchao's X86InductorQuantizer, calibration, an exported program."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import nn

from quantvm.errors import ConfigError
from quantvm.models.quantize_fx import without_stubs
from quantvm.torch_compat import quiet_torchao


def quantize_pt2e(
    model: nn.Module, example_f32: torch.Tensor, calibrate: Callable[[nn.Module], None]
) -> torch.export.ExportedProgram:
    """Returns the quantized program for any number of images; the float module is left untouched.

    Weights are int8 with a scale per channel, activations uint8 over all 8 bits.

    Args:
        model: any module that torch.export can export, in evaluation mode.
        example_f32: (2, 3, H, W); the program takes images of this height and width.
        calibrate: runs the prepared module over the calibration images.

    Raises:
        ConfigError: torchao is not installed.
    """
    try:
        with quiet_torchao():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as error:
        raise ConfigError(f"flow pt2e needs torchao ({error}): pip install 'quantvm[pt2e]'") from error
    batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and torchao warn about their own internals
        exported = torch.export.export(without_stubs(copy.deepcopy(model)), (example_f32,), dynamic_shapes=batch)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported.module(), quantizer)
        calibrate(prepared)
        converted = convert_pt2e(prepared)
        return torch.export.export(converted, (example_f32,), dynamic_shapes=batch)
