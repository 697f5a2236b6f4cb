"""The engine and threads with which PyTorch computes a reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from quantvm.choices import ENGINES
from quantvm.frontend.torch_cpu import torch_cpu
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.torch_compat import quantization_engine


@dataclass(frozen=True)
class TorchState(PyTorch):
    """The PyTorch of this process, with an engine and a number of threads."""

    cpu: Cpu = field(default_factory=torch_cpu)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Sets the engine and threads inside the block, and restores the previous ones afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with quantization_engine(self.engine) if self.engine in ENGINES else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)
