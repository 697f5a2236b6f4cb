"""The processor as the installed PyTorch sees it."""

from __future__ import annotations

from quantvm.numerics.pytorch import Cpu
from quantvm.torch_compat import has_avx512, has_vnni, onednn_uses_amx


def torch_cpu() -> Cpu:
    """Returns the instruction sets by which PyTorch's libraries choose their kernels in this process."""
    return Cpu(avx512=has_avx512(), vnni=has_vnni(), onednn_amx=onednn_uses_amx())
