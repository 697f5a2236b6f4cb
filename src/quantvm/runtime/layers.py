"""Every quantized tensor of a program, as PyTorch or compiled code computes it, for the comparison of layers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .target import parse_target

ArrayInt = Any
"""Integers of one layer, in PyTorch's logical order."""


class LayerRun(Protocol):
    """What computes the integers of every layer."""

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        ...


class TorchLayerRun:
    """PyTorch, under an engine.

    Args:
        program: a `frontend.LayeredProgram`.
        engine: fbgemm, x86, onednn or qnnpack.
        threads: PyTorch's.
    """

    def __init__(self, program: Any, *, engine: str, threads: int) -> None:
        self._program = program if engine == program.engine else _repacked(program, engine)
        self._engine, self._threads = engine, threads

    def tensors(self, x_f32: np.ndarray) -> list[Any]:
        """Returns all layers of one image as torch tensors of integers, in PyTorch's own memory order."""
        import torch

        from quantvm.frontend import capture
        from quantvm.torch_compat import quantization_engine

        torch.set_num_threads(self._threads)
        with quantization_engine(self._engine):
            return capture(self._program, torch.from_numpy(x_f32))

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        return [tensor.contiguous().numpy() for tensor in self.tensors(x_f32)]

    def channels_last(self, x_f32: np.ndarray) -> tuple[bool, ...]:
        """Returns of each layer whether PyTorch holds it in channels-last order."""
        return tuple(_is_channels_last(tensor) for tensor in self.tensors(x_f32))


def _repacked(program: Any, engine: str) -> Any:
    """Returns the program with its weights packed for another engine, which PyTorch does when it loads them."""
    import torch

    from quantvm.frontend import import_layers
    from quantvm.torch_compat import quantization_engine

    buffer = io.BytesIO()
    torch.jit.save(program.script, buffer)
    buffer.seek(0)
    with quantization_engine(engine):
        return import_layers(torch.jit.load(buffer), program.example_inputs, engine=engine)


def _is_channels_last(tensor: Any) -> bool:
    import torch

    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


class TvmLayerRun:
    """Code compiled from the program's Relax form.

    Args:
        program: a `frontend.LayeredProgram`.
        numerics: as `quantvm.compile` takes it; `qdq` for the Relax form itself, in float.
        engine: PyTorch engine whose arithmetic is followed.
        channels_last: of each layer, whether PyTorch holds it in channels-last order.
        target: what is compiled for.
        threads: of TVM's pool, and PyTorch's thread count that is reproduced.
    """

    def __init__(
        self, program: Any, *, numerics: str, engine: str, channels_last: Sequence[bool], target: str, threads: int
    ) -> None:
        self._program, self._numerics, self._engine = program, numerics, engine
        self._channels_last, self._target, self._threads = tuple(channels_last), parse_target(target), threads
        self._chained: Any = None
        self._isolated: Any = None

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        if self._chained is None:
            self._chained = self._compiled(self._program.chained)
        return _arrays(self._chained(_tensor(x_f32)))[self._program.n_outputs :]

    def isolated(self, x_f32: np.ndarray, layers: Sequence[ArrayInt]) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the given ones."""
        if self._isolated is None:
            self._isolated = self._compiled(self._program.isolated(self._channels_last))
        return _arrays(self._isolated(_tensor(x_f32), *map(_tensor, layers)))

    def _compiled(self, module: Any) -> Any:
        from tvm import relax

        from quantvm.lowering import LoweringOptions, lower
        from quantvm.tvm_compat import build_executable, start_vm, use_threads

        from .schedule_files import schedules_for

        use_threads(self._threads)
        # where a given tensor takes its place, nobody reads what was computed
        module = relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))
        if self._numerics == "qdq":
            lowered = relax.transform.LegalizeOps()(module)
        else:
            options = LoweringOptions(
                self._target, numerics=self._numerics, threads=self._threads, schedules=schedules_for(self._target)
            )
            lowered, _ = lower(module.with_attr("quantvm.engine", self._engine), options)
        return start_vm(build_executable(lowered, self._target))["main"]


def _tensor(array: np.ndarray) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array))


def _arrays(result: Any) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in result] if not hasattr(result, "numpy") else [result.numpy()]
