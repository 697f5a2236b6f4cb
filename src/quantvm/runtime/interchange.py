"""Tensors of NumPy, PyTorch and any other library that speaks DLPack, into TVM and out again.

Memory is shared where possible. TVM's kernels require tensors in C order that begin at a 64-byte boundary. PyTorch's
tensors do; NumPy's mostly do not, unless `aligned_empty` made them, and are then copied.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["numpy", "torch", "tvm"]

ALIGNMENT_BYTES = 64
"""TVM's kernels expect tensors to begin at multiples of this."""
_CPU = 1  # kDLCPU of DLPack


@dataclass(frozen=True)
class Given:
    """A tensor as its owner gave it.

    Attributes:
        value: a torch tensor, or an array that shares the memory of the given object.
        kind: the library whose tensors are returned for it.
        problem: why it is refused, as the end of "input 0 is ..."; None if it is not.
    """

    value: Any
    kind: Kind
    problem: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its dimensions."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        """Its dtype by NumPy's name."""
        return str(self.value.dtype).removeprefix("torch.")


def given(x: Any) -> Given:
    """Wraps a tensor of any library without a copy, or the array that NumPy makes from another object."""
    torch = sys.modules.get("torch")  # whoever has a torch tensor has imported torch
    if torch is not None and isinstance(x, torch.Tensor):
        return Given(x, "torch", _torch_problem(x, torch))
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        try:
            return Given(np.asarray(x), "numpy")
        except ValueError:
            return Given(np.empty(0, np.float32), "numpy", f"a {type(x).__name__}, expected a tensor or an array")
    kind: Kind = "tvm" if type(x).__module__.split(".")[0] in ("tvm", "tvm_ffi") else "numpy"
    device = x.__dlpack_device__()
    if device[0] != _CPU:
        # an array of no elements stands for it in messages
        return Given(np.empty(0, np.float32), kind, f"on DLPack's device {tuple(map(int, device))}, expected the CPU")
    try:
        return Given(np.from_dlpack(x), kind)
    except (BufferError, RuntimeError, TypeError) as error:
        return Given(np.empty(0, np.float32), kind, f"a {type(x).__name__} that NumPy cannot take by DLPack: {error}")


def _torch_problem(x: Any, torch: Any) -> str | None:
    if x.device.type != "cpu":
        return f"on {x.device}, expected the CPU; call .cpu() first"
    if x.layout != torch.strided:
        return f"a tensor of layout {x.layout}, expected a dense one; call .to_dense() first"
    return None


def shared(tensor: Given, tvm: Any) -> Any:
    """Returns what was given as a TVM tensor in C order: its own memory, or a copy of it.

    It is copied only if it is not in C order (as PyTorch's channels_last), if the memory does not begin at a 64-byte
    boundary, or if it is read-only, which DLPack cannot tell TVM.
    """
    x = tensor.value
    if tensor.kind == "torch":
        x = x.detach().resolve_neg().contiguous().numpy()
    array = np.asarray(x, order="C")  # np.ascontiguousarray would add a dimension to a scalar
    if array.ctypes.data % ALIGNMENT_BYTES == 0 and array.flags.writeable:
        return tvm.runtime.from_dlpack(array)
    return tvm.runtime.tensor(array)


def returned(tensor: Any, kind: Kind) -> Any:
    """Returns a TVM tensor as a tensor of a library, which shares its memory."""
    if kind == "torch":
        import torch

        return torch.from_dlpack(tensor)
    return tensor if kind == "tvm" else np.from_dlpack(tensor)


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an uninitialized float32 array that a compiled model takes without a copy."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * 4
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes].view(np.float32).reshape(shape)
