"""The engine and threads with which PyTorch computes a reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from quantvm.choices import ENGINES
from quantvm.torch_compat import quantization_engine


@dataclass(frozen=True)
class TorchState:
    """An engine and a thread count.

    Attributes:
        engine: fbgemm, x86, onednn or qnnpack; for a program that is for none of them, its kind, such as pt2e.
        threads: inside one operator.
    """

    engine: str
    threads: int

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
