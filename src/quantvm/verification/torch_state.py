"""How PyTorch computes what code is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from quantvm.numerics.torch_engines import ENGINES
from quantvm.torch_compat import quantization_engine


@dataclass(frozen=True)
class TorchState:
    """An engine and a thread count.

    Attributes:
        engine: fbgemm, x86, onednn or qnnpack; or what a program is for that is for none of them.
        threads: inside of one operator.
    """

    engine: str
    threads: int

    @contextmanager
    def active(self) -> Iterator[None]:
        """PyTorch computes so inside of the block, and afterwards as before."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with quantization_engine(self.engine) if self.engine in ENGINES else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)
