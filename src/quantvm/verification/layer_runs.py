"""Computes every quantized tensor of a program, by PyTorch or by compiled code, for the comparison of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantvm.errors import UnsupportedOpError
from quantvm.numerics.torch_engines import quantize_arr
from quantvm.qdq.attributes import ENGINE
from quantvm.runtime.target import parse_target

from .torch_state import TorchState

ArrayInt = Any
"""Integers of one layer, in PyTorch's logical order."""


class TorchLayerRun:
    """PyTorch, under an engine; or another framework that the program came from.

    Args:
        program: a `frontend.LayeredProgram`.
        state: PyTorch's engine and threads; the engine may differ from that of the program.
    """

    def __init__(self, program: Any, state: TorchState) -> None:
        is_packed = state.engine == program.engine
        self._program = program if is_packed else program.source.packed_for(state, program.example_inputs)
        self._state = state

    def outputs(self, x_f32: np.ndarray) -> list[np.ndarray]:
        """Returns the program's outputs of one image."""
        import torch

        with self._state.active():
            return [tensor.numpy() for tensor in self._program.source.outputs([torch.from_numpy(x_f32)])]

    def tensors(self, x_f32: np.ndarray, given: Sequence[Any] | None = None) -> list[Any]:
        """Returns all layers of one image as torch tensors of integers, in PyTorch's own memory order."""
        import torch

        program = self._program
        with self._state.active():
            return list(program.source.layers(program.layers, [torch.from_numpy(x_f32)], given=given))

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        return [tensor.contiguous().numpy() for tensor in self.tensors(x_f32)]

    def isolated(self, x_f32: np.ndarray, layers: Sequence[ArrayInt]) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the given ones."""
        import torch

        formats = self.channels_last(x_f32)
        given = [
            tensor.contiguous(memory_format=torch.channels_last) if is_last else tensor
            for tensor, is_last in zip(map(_torch, layers), formats, strict=True)
        ]
        return [tensor.contiguous().numpy() for tensor in self.tensors(x_f32, given)]

    def channels_last(self, x_f32: np.ndarray) -> tuple[bool, ...]:
        """Returns for each layer whether PyTorch holds it in channels-last order."""
        from quantvm.frontend.layers import is_channels_last

        if self._formats is None:
            self._formats = tuple(is_channels_last(tensor) for tensor in self.tensors(x_f32))
        return self._formats

    _formats: tuple[bool, ...] | None = None


def _torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


class FloatLayerRun:
    """The float model, each layer's values quantized with the layer's own parameters.

    Args:
        program: a `frontend.LayeredProgram`.
        float_model: what it was quantized from.
        state: how PyTorch computes; only its threads count.
    """

    def __init__(self, program: Any, float_model: Any, state: TorchState) -> None:
        from quantvm.frontend.float_layers import FloatLayers

        self._program, self._state = program, state
        self._layers = FloatLayers(float_model, program)

    def real(self, x_f32: np.ndarray) -> list[np.ndarray]:
        """Returns the values of all layers of one image, float32."""
        import torch

        torch.set_num_threads(self._state.threads)
        return [tensor.contiguous().numpy() for tensor in self._layers([torch.from_numpy(x_f32)])]

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns the integers of all layers of one image."""
        return [
            quantize_arr(real, layer.q).astype(layer.q.dtype)
            for real, layer in zip(self.real(x_f32), self._program.layers, strict=True)
        ]


class QdqLayerRun:
    """The program's Relax form, computed literally: in float32 between dequantize and quantize.

    Args:
        program: a `frontend.LayeredProgram`.
        channels_last: of each layer, whether PyTorch holds it in channels-last order.
        state: how PyTorch computes; only its threads count.

    Raises:
        UnsupportedOpError: it has operators without a known float form.
    """

    def __init__(self, program: Any, *, channels_last: Sequence[bool], state: TorchState) -> None:
        from .qdq_in_float import QdqInFloat, unknown_ops

        unknown = unknown_ops(program.chained)
        if unknown:
            raise UnsupportedOpError(f"side qdq: no float form of {', '.join(unknown)} is known; compare another side")
        self._program, self._state = program, state
        self._chained = QdqInFloat(program.chained)
        self._isolated = QdqInFloat(program.isolated(channels_last))

    def outputs(self, x_f32: np.ndarray) -> list[np.ndarray]:
        """Returns the program's outputs of one image."""
        return self._all(x_f32)[: self._program.n_outputs]

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        return self._all(x_f32)[self._program.n_outputs :]

    def isolated(
        self, x_f32: np.ndarray, layers: Sequence[ArrayInt], wanted: Sequence[int] | None = None
    ) -> list[ArrayInt]:
        """Returns all layers of one image, or the wanted ones, each computed from the given ones."""
        self._use_threads()
        found = self._isolated(x_f32, *layers)
        return found if wanted is None else [found[i] for i in wanted]

    def _all(self, x_f32: np.ndarray) -> list[np.ndarray]:
        self._use_threads()
        return self._chained(x_f32)

    def _use_threads(self) -> None:
        import torch

        torch.set_num_threads(self._state.threads)


class TvmLayerRun:
    """Code compiled from the program's Relax form.

    Args:
        program: a `frontend.LayeredProgram`.
        numerics: as `quantvm.compile` takes it; None to leave all operators in float.
        state: of PyTorch, whose arithmetic is reproduced; TVM's pool has as many threads.
        channels_last: of each layer, whether PyTorch holds it in channels-last order.
        target: what is compiled for.
    """

    def __init__(
        self,
        program: Any,
        *,
        numerics: str | None,
        state: TorchState,
        channels_last: Sequence[bool],
        target: str,
    ) -> None:
        self._program, self._numerics, self._state = program, numerics, state
        self._channels_last, self._target = tuple(channels_last), parse_target(target)
        self._chained: Any = None
        self._fused: Any = None
        self._last: tuple[np.ndarray, list[np.ndarray]] | None = None
        self._isolated: dict[tuple[int, ...] | None, Any] = {}

    def compile(self) -> None:
        """Compiles the code that returns all layers, and the fused code: with few images this takes longest."""
        self._compile_chained()
        self._compile_fused()

    def _compile_chained(self) -> None:
        self._chained = self._chained or self._compiled(self._program.chained)

    def _compile_fused(self) -> None:
        self._fused = self._fused or self._compiled(self._program.plain)

    def chained(self, x_f32: np.ndarray) -> list[ArrayInt]:
        """Returns all layers of one image, each computed from the layers before it."""
        return self._both(x_f32)[self._program.n_outputs :]

    def layers_of(self, inputs: Sequence[np.ndarray]) -> list[ArrayInt]:
        """Returns all layers of one call with several inputs, each computed from the layers before it."""
        self._compile_chained()
        return _arrays(self._chained(*map(_tensor, inputs)))[self._program.n_outputs :]

    def _both(self, x_f32: np.ndarray) -> list[np.ndarray]:
        self._compile_chained()
        if self._last is None or self._last[0] is not x_f32:
            self._last = x_f32, _arrays(self._chained(_tensor(x_f32)))
        return self._last[1]

    def outputs(self, x_f32: np.ndarray) -> list[np.ndarray]:
        """Returns the outputs of one image, from the code that also returns the layers."""
        return self._both(x_f32)[: self._program.n_outputs]

    def fused_outputs(self, x_f32: np.ndarray) -> list[np.ndarray]:
        """Returns the outputs of one image, from code that returns nothing else, so that layers are fused."""
        self._compile_fused()
        return _arrays(self._fused(_tensor(x_f32)))

    def isolated(
        self, x_f32: np.ndarray, layers: Sequence[ArrayInt], wanted: Sequence[int] | None = None
    ) -> list[ArrayInt]:
        """Returns all layers of one image, or the wanted ones, each computed from the given ones."""
        key = None if wanted is None else tuple(wanted)
        if key not in self._isolated:
            self._isolated[key] = self._compiled(self._program.isolated(self._channels_last, wanted))
        return _arrays(self._isolated[key](_tensor(x_f32), *map(_tensor, layers)))

    def _compiled(self, module: Any) -> Any:
        from tvm import relax

        from quantvm.compiler.schedule_files import schedules_for
        from quantvm.lowering import LoweringOptions, lower
        from quantvm.tvm_compat import build_executable, start_vm, use_threads

        use_threads(self._state.threads)
        # a computed layer that a given tensor replaces has no readers
        module = relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))
        options = LoweringOptions(
            self._target, numerics=self._numerics or "torch", threads=self._state.threads,
            schedules=schedules_for(self._target), in_float=self._numerics is None,
        )  # fmt: skip
        lowered, _ = lower(module.with_attr(ENGINE, self._state.engine), options)
        return start_vm(build_executable(lowered, self._target))["main"]


def _tensor(array: np.ndarray) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array))


def _arrays(result: Any) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in result] if not hasattr(result, "numpy") else [result.numpy()]
