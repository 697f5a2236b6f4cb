"""PyTorch, TVM and ONNX Runtime behind one contract: a float32 batch in, the raw outputs out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantvm.errors import ConfigError, gist
from quantvm.runtime.artifact import Artifact
from quantvm.torch_compat import quiet


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


def float_runner(module: Any, *, threads: int, optimized: bool | None = None) -> Runner:
    """Returns the fastest runner of a float model that has the same answers as the module, but for rounding.

    Args:
        module: in evaluation mode; also a traced one.
        threads: threads inside of one operator.
        optimized: whether it is optimized; None: if `may_be_optimized`.
    """
    runner = TorchRunner(module, threads=threads)
    optimized = may_be_optimized(module) if optimized is None else optimized
    return OptimizedFloatRunner(module, runner, threads=threads) if optimized else runner


def may_be_optimized(module: Any) -> bool:
    """Whether a float model can be traced: one of torchvision or quantvm.

    Tracing a model of the user's own may lose what its code decides by an image's values.
    """
    return type(module).__module__.partition(".")[0] in _TRACED_PACKAGES


_TRACED_PACKAGES = ("torchvision", "quantvm")
_CLOSE = 1e-3
"""Frozen networks fold batch norms into convolutions, which moves outputs by about 1e-5 of their size."""


class OptimizedFloatRunner:
    """Runs a float network frozen, with batch norms folded and convolutions in oneDNN's own memory layout.

    The first batch of each size runs in both ways. If the outputs are not close, the module runs as it is.

    Args:
        module: in evaluation mode, with parameters in float32.
        plain: runs the module as it is.
        threads: threads inside of one operator.
    """

    name = "torch"

    def __init__(self, module: Any, plain: Runner, *, threads: int) -> None:
        self._module, self._plain, self._threads = module, plain, threads
        self._optimized: Runner | None = None
        self._batch_sizes: set[int] = set()

    def run(self, x_f32: np.ndarray) -> np.ndarray:
        """Returns the module's output as float32."""
        if len(x_f32) not in self._batch_sizes:
            if not self._batch_sizes:
                self._optimized = self._optimize(x_f32)
            self._batch_sizes.add(len(x_f32))
            if self._optimized is not None and not self._is_close(x_f32):
                self._optimized = None
        return (self._optimized or self._plain).run(x_f32)

    def _optimize(self, x_f32: np.ndarray) -> Runner | None:
        import torch

        try:
            with quiet(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)  # what is traced is compared with the module
                traced = self._module
                if not isinstance(traced, torch.jit.ScriptModule):
                    traced = torch.jit.trace(traced, torch.from_numpy(x_f32), check_trace=False)
                frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        except Exception:  # noqa: BLE001 - PyTorch raises many types; the module itself still runs
            return None
        return TorchRunner(frozen, threads=self._threads)

    def _is_close(self, x_f32: np.ndarray) -> bool:
        assert self._optimized is not None
        expected_f32 = self._plain.run(x_f32)
        scale = float(np.abs(expected_f32).max(initial=0.0))
        return bool(np.allclose(self._optimized.run(x_f32), expected_f32, rtol=0, atol=_CLOSE * scale))


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
