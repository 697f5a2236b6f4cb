"""The PyTorch whose bits are reproduced: what its choices and the order of its sums depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

Kind = TypeVar("Kind", bound="PyTorch")


@dataclass(frozen=True)
class Cpu:
    """The instruction sets by which PyTorch's libraries choose their kernels.

    Attributes:
        avx512: AVX512: average pools use vectors of 16 channels, else of 8.
        vnni: AVX512-VNNI: without it, FBGEMM and oneDNN use other kernels, whose sums saturate.
        onednn_amx: AMX, if oneDNN uses it: how it scales then depends on the shape and the number of images.
    """

    avx512: bool = True
    vnni: bool = True
    onednn_amx: bool = False


@dataclass(frozen=True)
class PyTorch:
    """The PyTorch whose bits are reproduced.

    Attributes:
        engine: fbgemm, x86, onednn or qnnpack; for a program that is for none of them, its kind, such as pt2e.
        threads: inside one operator; the scalar tails of element-wise loops depend on them.
        cpu: its processor.
    """

    engine: str
    threads: int = 1
    cpu: Cpu = Cpu()

    def under(self: Kind, name: str) -> Kind:
        """Returns the same PyTorch under another engine."""
        return replace(self, engine=name)
