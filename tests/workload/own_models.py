"""What a user has: factories of models in a file of Python code, quantized programs in files, images in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FACTORIES = '''
"""Factories as a user writes them."""

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import nn

SIZE = 32


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(64, 7)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(torch.flatten(self.pool(self.conv2(x)), 1))


class Quantizable(tq.QuantWrapper):
    def fuse_model(self):
        tq.fuse_modules(self, [["module.conv", "module.bn", "module.relu"]], inplace=True)


def network():
    torch.manual_seed(3)
    return Network().eval()


def floating():
    """A quantizable float module."""
    return Quantizable(network()).eval()


def floating_with_input():
    return floating(), calibration()[:1]


def calibration():
    torch.manual_seed(5)
    return torch.randn(8, 3, SIZE, SIZE)


def quantized(engine="fbgemm"):
    torch.backends.quantized.engine = engine
    module = tq.QuantWrapper(network()).eval()
    module.qconfig = tq.get_default_qconfig(engine)
    module = tq.prepare(tq.fuse_modules(module, [["module.conv", "module.bn", "module.relu"]]))
    module(calibration())
    return tq.convert(module)


def with_inputs():
    return quantized(), calibration()[:1]


def with_arrays():
    return quantized(), [np.zeros((1, 3, SIZE, SIZE), np.float32)]


def traced():
    return torch.jit.trace(quantized(), calibration()[:1])


def float32():
    return network()


def numbers():
    return [1, 2]


def doubles():
    return quantized(), calibration().double()


def raises():
    return {}["weights"]


def features():
    """Returns no scores."""
    class Features(nn.Module):
        def forward(self, x):
            return torch.quantize_per_tensor(x, 0.1, 3, torch.quint8).dequantize()
    return Features().eval()


def beyond_uint8():
    """Its zero point is none, which PyTorch says when it runs."""
    class Beyond(nn.Module):
        def forward(self, x):
            return torch.quantize_per_tensor(x, 0.1, 300, torch.quint8).dequantize()
    return torch.jit.script(Beyond().eval())


def of_classes(n, hidden=8):
    return quantized()


def two_outputs():
    class Two(nn.Module):
        def forward(self, x):
            y = torch.quantize_per_tensor(x, 0.1, 3, torch.quint8).dequantize()
            return y, y
    return Two().eval()


instance = quantized()
answer = 42


def exported(batch=None):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer, get_default_x86_inductor_quantization_config,
    )

    x = calibration()
    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    example = (x if batch is None else x[:batch],)
    prepared = prepare_pt2e(torch.export.export(network(), example, dynamic_shapes=shapes).module(), quantizer)
    prepared(*example)
    return torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=shapes)


def exported_for_three():
    return exported(3)
'''


def write_factories(folder: Path, name: str = "mymodels") -> Path:
    """Writes the factories as a module of Python; returns its path."""
    path = folder / f"{name}.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "fox"), each: int = 4) -> Path:
    """Writes seeded images, one folder a class; returns the folder of folders."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            low = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            low[..., label % 3] //= 2
            Image.fromarray(low).resize((48, 40)).save(folder / name / f"{index}.png")
    return folder
