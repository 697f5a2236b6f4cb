"""Runs one kernel alone, on a chosen target, for comparison with PyTorch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from quantvm.kernels import Kernel
from quantvm.tvm_compat import native_target
from tests import guarded

TARGETS = {"native": None, "plain": {"kind": "llvm", "mcpu": "x86-64"}}


def every_day(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """Returns names as parameters, of which those that are not chosen are for the nightly run."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.nightly) for name in names]


@pytest.fixture(autouse=True)
def _torch_state(one_torch_thread, fbgemm):
    """Holds for every kernel."""


@pytest.fixture(params=["native", pytest.param("plain", marks=pytest.mark.nightly)])
def target(request):
    """Code for this CPU, and in the nightly run, or where a test asks for it, code for the plainest one."""
    chosen = TARGETS[request.param]
    return native_target() if chosen is None else tvm.target.Target(chosen)


def run(
    kernel: Kernel, target: tvm.target.Target, *inputs: np.ndarray, out_shape: tuple, out_dtype="uint8"
) -> np.ndarray:
    """Compiles `kernel`, calls it once and returns its output; bytes around the output must stay untouched."""
    return compiled(kernel, target)(*inputs, out_shape=out_shape, out_dtype=out_dtype)


def compiled(kernel: Kernel, target: tvm.target.Target) -> Callable[..., np.ndarray]:
    """Returns a kernel as a function of its inputs and of the shape and dtype of its output."""
    library = tvm.compile(tvm.IRModule({"main": kernel.func}), target=target)

    def call(*inputs: np.ndarray, out_shape: tuple, out_dtype: str = "uint8") -> np.ndarray:
        given = [np.ascontiguousarray(a) for a in (*inputs, *kernel.constants)]
        for _ in guarded.sides():
            out = tvm.runtime.tensor(np.zeros(out_shape, out_dtype))
            library["main"](*map(tvm.runtime.tensor, given), out)
        return out.numpy()

    return call


def nhwc(t: torch.Tensor) -> np.ndarray:
    """Returns the integers of a quantized NCHW tensor as an NHWC array."""
    return np.ascontiguousarray(t.int_repr().permute(0, 2, 3, 1).numpy())


def quantized(x_u8: np.ndarray, scale: float, zero_point: int, *, channels_last: bool = True) -> torch.Tensor:
    """Returns an (N, C, H, W) quint8 tensor from NHWC integers, or any tensor from integers of another rank."""
    t = torch.from_numpy(x_u8)
    if x_u8.ndim == 4:
        t = t.permute(0, 3, 1, 2).contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
    return torch._make_per_tensor_quantized_tensor(t, scale, zero_point)
