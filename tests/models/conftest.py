"""A network small enough that quantizing it takes no time, and images of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules

from quantvm.data.preprocess import Preprocessing
from quantvm.models.registry import ModelSpec, WeightsFile


class TinyNet(nn.Module):
    """Convolution, depthwise convolution, residual add, ReLU6, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.relu6 = nn.ReLU6()
        self.add = nn.quantized.FloatFunctional()
        self.never_called = nn.quantized.FloatFunctional()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(self.quant(x))))
        x = self.add.add(x, self.relu6(self.depthwise(x)))
        return self.dequant(self.fc(x.mean((2, 3))))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, ["conv", "norm", "relu"], inplace=True)


class RecordingProgress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[dict] = []

    def task(self, description, total=None, unit=""):
        record = {"description": description, "total": total, "done": 0}
        self.tasks.append(record)

        class Task:
            def __enter__(self):
                return self

            def __exit__(self, *exc):
                return None

            def advance(self, amount=1):
                record["done"] += amount

        return Task()

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def progress():
    return RecordingProgress()


@pytest.fixture
def tiny_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def tiny_spec():
    return ModelSpec(
        name="tiny",
        title="tiny",
        build=lambda: TinyNet().eval(),
        weights=WeightsFile("tiny-00000000.pth", url="http://127.0.0.1:9/tiny-00000000.pth", sha256="00000000"),
        preprocessing=Preprocessing(resize=20, crop=16),
        published_top1=None,
        published_top5=None,
        published_by="nobody",
    )


def noise_batches(n_batches: int = 2, n_images: int = 2, side: int = 16, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n_images, 3, side, side)).astype(np.float32) for _ in range(n_batches)]
