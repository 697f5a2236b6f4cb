"""Chains of operators with a number: PyTorch derives each scale from the one before in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import quantvm

from ..quantized_modules import image

Q = torch.ops.quantized
SCALES = (0.1, float(np.float32(0.037)), 0.0213)
CHAINS = (
    (("mul", -1.3), ("mul", -1.3)),
    (("mul", 0.7), ("mul", 1.1), ("mul", 0.9)),
    (("mul", -0.7), ("add", 0.37), ("mul", -1.7)),
    (("mul", 1.3), ("add", -0.4), ("add", 0.9), ("mul", 0.3)),
    (("add", 5.3), ("add", 40.0)),
    (("add", -5.3), ("add", -40.0), ("mul", -2.3)),
)


class Numbers(nn.Module):
    """Quantizes its input under each scale, which need not be a float32 number, and applies every chain."""

    def forward(self, x):
        outputs = []
        for scale in SCALES:
            for chain in CHAINS:
                y = torch.quantize_per_tensor(x, scale, 120, torch.quint8)
                for name, number in chain:
                    y = Q.mul_scalar(y, number) if name == "mul" else Q.add_scalar(y, number)
                outputs.append(y.dequantize())
        return tuple(outputs)


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_chains_of_numbers_have_torchs_bits(engine):
    model, x = Numbers().eval(), image(1, 3, 9, 7)
    artifact = quantvm.compile(model, x, engine=engine, threads=1, cache=False)
    assert artifact.report.verification.verdict == "exact", artifact
    x = image(3, 3, 9, 7, seed=1) * 4
    for index, (actual, expected) in enumerate(zip(artifact(x), model(x), strict=True)):
        assert torch.equal(actual, expected), (index, CHAINS[index % len(CHAINS)], SCALES[index // len(CHAINS)])
