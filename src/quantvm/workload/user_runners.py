"""What runs a model of the user's own on batches of images: another runtime, other batch sizes, another order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantvm.errors import ConfigError, gist

if TYPE_CHECKING:
    from quantvm.workload.runners import Runner


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
        except Exception as error:  # its errors have no common base but that
            raise ConfigError(f"ONNX Runtime cannot load {path}: {gist(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the file's first output."""
        return self._session.run(None, {self._input: x_f32})[0]


class FixedBatchRunner:
    """Runs any number of images through an engine that takes a fixed number of them.

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
    """Runs images through an engine that takes them as (N, H, W, 3).

    Args:
        inner: the engine.
    """

    def __init__(self, inner: Runner) -> None:
        self.name, self._inner = inner.name, inner

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the outputs of the images, (N, 3, H, W)."""
        return self._inner.run(np.ascontiguousarray(x_f32.transpose(0, 2, 3, 1)))
