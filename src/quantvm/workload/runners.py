"""PyTorch and TVM behind one contract: a float32 batch in, the raw outputs out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from quantvm.runtime.artifact import Artifact


class Runner(Protocol):
    """An engine that runs one model."""

    name: str

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the raw float32 outputs (N, classes) for a batch (N, 3, H, W); the caller owns the result."""
        ...


class TorchRunner:
    """Runs a module in PyTorch.

    Args:
        module: in evaluation mode.
        threads: threads inside of one operator.
    """

    name = "torch"

    def __init__(self, module: Any, *, threads: int) -> None:
        self._module, self._threads = module, threads

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the module's output as float32."""
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            return self._module(torch.from_numpy(x_f32)).numpy()


class TvmRunner:
    """Runs an artifact in TVM.

    Args:
        artifact: a compiled model.
        threads: threads of TVM's pool, which all runners of a process share.
    """

    name = "tvm"

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        from quantvm.tvm_compat import use_threads

        self._artifact, self._threads = artifact, threads
        use_threads(threads)

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the artifact's output as float32."""
        return self._artifact(x_f32)
