"""What a compiled model returns is the caller's: writing to it changes neither the model nor an input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantvm.compiler import compile as compile_model


class Passing(nn.Module):
    """Returns its input, views of it, constants, and a result of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = torch.quantize_per_tensor(x, 0.05, 100, torch.quint8)
        return x, x.reshape(2, -1), self.table, self.table.reshape(-1), q.dequantize()


@pytest.fixture(scope="module")
def artifact():
    options = {"batch": "static", "engine": "fbgemm", "threads": 1, "cache": False}
    return compile_model(Passing().eval(), torch.zeros(2, 3, 4), **options)


@pytest.mark.parametrize("index", range(5))
def test_writing_to_an_output_changes_nothing_else(artifact, index):
    x = torch.linspace(-4, 4, 24).reshape(2, 3, 4)
    expected = Passing()(x)
    kept, given = x.clone(), x.clone()
    outputs = artifact(given)
    assert all(torch.equal(a, e) for a, e in zip(outputs, expected, strict=True))
    outputs[index].fill_(7.0)
    assert torch.equal(given, kept)
    assert all(torch.equal(a, e) for a, e in zip(artifact(given), expected, strict=True))
