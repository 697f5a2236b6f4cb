"""PyTorch, TVM and ONNX Runtime behind one contract: a float32 batch in, the raw outputs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantvm.errors import ConfigError, gist
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


class OnnxRuntimeRunner:
    """Runs an ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: threads inside of one operator.

    Raises:
        ConfigError: ONNX Runtime cannot load it.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, *, threads: int) -> None:
        from quantvm.frontend.onnx.layers import unfused_session

        try:
            self._session = unfused_session(str(path), threads=threads)
        except Exception as error:  # ONNX Runtime's errors have no other common base class
            raise ConfigError(f"ONNX Runtime cannot load {path}: {gist(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the file's first output."""
        return self._session.run(None, {self._input: x_f32})[0]


class FixedBatchRunner:
    """Runs any number of images on an engine that takes a fixed number of them.

    Args:
        inner: the engine.
        batch: images in each of its calls; the last call is filled up with copies of the last image.
    """

    def __init__(self, inner: Runner, batch: int) -> None:
        self.name, self._inner, self._batch = inner.name, inner, batch

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the outputs of the images."""
        return np.concatenate(list(self._outputs(x_f32)))

    def _outputs(self, x_f32: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(x_f32), self._batch):
            part = x_f32[start : start + self._batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            yield self._inner.run(np.ascontiguousarray(filled))[: len(part)]


class ChannelsLastRunner:
    """Runs images on an engine that takes them as (N, H, W, 3).

    Args:
        inner: the engine.
    """

    def __init__(self, inner: Runner) -> None:
        self.name, self._inner = inner.name, inner

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the outputs of the images, (N, 3, H, W)."""
        return self._inner.run(np.ascontiguousarray(x_f32.transpose(0, 2, 3, 1)))
