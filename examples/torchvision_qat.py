"""A torchvision network, fine-tuned with quantization in the loop (QAT), from its checkpoint to the same bits in TVM.

pip install quantvm
python torchvision_qat.py
"""

from __future__ import annotations

import torch
import torch.ao.quantization as tq
from torch import nn

import quantvm
from quantvm.torch_compat import import_torchvision

import_torchvision()  # as `import torchvision`, and also beside a build of PyTorch that it was not made for
from torchvision.models.quantization import resnet18  # noqa: E402

ENGINE = "fbgemm"


def prepared_network(classes: int) -> nn.Module:
    """Returns the network with fake quantization, ready to be trained."""
    model = resnet18(num_classes=classes, quantize=False).train()
    model.fuse_model(is_qat=True)
    model.qconfig = tq.get_default_qat_qconfig(ENGINE)
    return tq.prepare_qat(model, inplace=True)


def fine_tune(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """A few steps of training, as a stand-in for your own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def main() -> None:
    """Trains, saves and loads a checkpoint, converts, compiles, compares bit by bit."""
    torch.manual_seed(0)
    torch.backends.quantized.engine = ENGINE
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4

    trained = prepared_network(classes=4)
    fine_tune(trained, images, labels, steps=3)
    torch.save(trained.state_dict(), "qat.pth")

    model = prepared_network(classes=4)
    model.load_state_dict(torch.load("qat.pth", weights_only=True))
    quantized = tq.convert(model.eval())  # without this step the model is refused: it is still float

    artifact = quantvm.compile(quantized, images[:1])
    actual, expected = artifact(images), quantized(images)
    print(f"{100 * artifact.report.int8_mac_share:.0f} % of the multiply-adds in int8, engine {artifact.report.engine}")
    print("same bits:", torch.equal(actual, expected))
    artifact.save("qat.qvm")


if __name__ == "__main__":
    main()
