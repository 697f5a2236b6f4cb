"""Interpolation in exported programs: compiled code against PyTorch's own run, of integers and of floats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.errors import UnsupportedOpError
from quantvm.frontend.exported.importer import register_operators

WAYS = [
    {"size": (3, 3), "mode": "nearest"},
    {"size": (10, 14), "mode": "nearest"},
    {"scale_factor": 1.7, "mode": "nearest"},
    {"size": (8, 9), "mode": "bilinear", "align_corners": False},
    {"size": (8, 9), "mode": "bilinear", "align_corners": True},
    {"scale_factor": 1.7, "mode": "bilinear", "align_corners": False},
    {"size": (8, 9), "mode": "bicubic", "align_corners": False},
    {"scale_factor": 1.7, "mode": "bicubic", "align_corners": False},
]


def rounded(x: torch.Tensor) -> torch.Tensor:
    d, params = torch.ops.quantized_decomposed, (0.02, 100, 0, 255, torch.uint8)
    return d.dequantize_per_tensor(d.quantize_per_tensor(x, *params), *params)


class Interpolated(nn.Module):
    def __init__(self, ways: list[dict]) -> None:
        super().__init__()
        self.ways = ways

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(F.interpolate(y, **way) for way in self.ways for y in (rounded(x), torch.erf(rounded(x))))


def test_interpolation_is_pytorchs():
    register_operators()
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Interpolated(WAYS), (x,))
    expected, actual = program.module()(x), compile_model(program, cache=False)(x)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        way = WAYS[index // 2]
        bound = 0 if way["mode"] == "nearest" and index % 2 == 0 else 2e-6 * float(e.abs().max())
        assert a.shape == e.shape, way
        assert float((a - e).abs().max()) <= bound, way


def test_antialiasing_is_refused():
    register_operators()
    way = {"size": (3, 4), "mode": "bilinear", "align_corners": False, "antialias": True}
    program = torch.export.export(Interpolated([way]), (torch.randn(2, 3, 5, 7),))
    with pytest.raises(UnsupportedOpError, match="_upsample_bilinear2d_aa"):
        compile_model(program, cache=False)
