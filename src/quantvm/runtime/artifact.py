"""A compiled model: maps a batch to its outputs, and says what was made of it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantvm.errors import ConfigError

from .target import physical_cores


@dataclass(frozen=True)
class CompileReport:
    """How a model was compiled.

    Attributes:
        import_s: seconds from the torch program to Relax QDQ.
        compile_s: seconds of lowering and code generation.
        int8_mac_share: share of the multiply-adds that run in int8 kernels, 0..1.
        float_ops: operators left in float.
        target: TVM target.
        kernels: how often each kernel is called.
        engine: PyTorch engine whose arithmetic is reproduced.
        numerics: torch.
        threads: PyTorch's thread count that is reproduced.
        output_scale: step of the output's quantization; None if the output is not just dequantized.
    """

    import_s: float
    compile_s: float
    int8_mac_share: float
    float_ops: tuple[str, ...]
    target: str
    kernels: dict[str, int]
    engine: str
    numerics: str
    threads: int
    output_scale: float | None


class Artifact:
    """A compiled model. Calling it maps float32 inputs to outputs; torch tensors in, torch tensors out.

    Several threads may call it; they take turns, each call using all of TVM's threads.

    Args:
        executable: Relax VM executable.
        input_shapes: logical shape of every input; None where a dimension is dynamic.
        report: how it was compiled.
    """

    def __init__(
        self, executable: Any, input_shapes: tuple[tuple[int | None, ...], ...], report: CompileReport
    ) -> None:
        import tvm
        from tvm import relax

        # TVM's pool reads both when it starts. It would count hyperthreads wrongly on CPUs that have none, and pin this
        # process's threads to single cores, PyTorch's among them.
        os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        self._executable = executable
        self._vm = relax.VirtualMachine(executable, tvm.cpu())
        self._main = self._vm["main"]
        # A Relax VM keeps its registers from call to call: it must not be entered twice at once.
        self._lock = threading.Lock()
        self.input_shapes = input_shapes
        self.report = report

    def __call__(self, *inputs: Any) -> Any:
        """Returns the output, or a tuple of several, of the same kind (NumPy or torch) as the first input.

        Raises:
            ConfigError: the number, dtype or shape of the inputs is not the compiled one.
        """
        import tvm

        given = [x if _is_torch(x) else np.asarray(x) for x in inputs]
        self._check(given)
        arrays = [_dense(x) for x in given]
        with self._lock:
            result = self._main(*(_shared(a, tvm) for a in arrays))
        as_torch = _is_torch(inputs[0])
        if hasattr(result, "numpy"):
            return _as_kind(result, as_torch)
        return tuple(_as_kind(r, as_torch) for r in result)

    def _check(self, given: list[Any]) -> None:
        if len(given) != len(self.input_shapes):
            raise ConfigError(f"the model takes {len(self.input_shapes)} inputs, got {len(given)}")
        problems = []
        for index, (x, shape) in enumerate(zip(given, self.input_shapes, strict=True)):
            fits = len(x.shape) == len(shape) and all(e in (None, a) for a, e in zip(x.shape, shape, strict=True))
            expected = "(" + ", ".join("n" if d is None else str(d) for d in shape) + ")"
            dtype = str(x.dtype).removeprefix("torch.")
            if dtype != "float32" or not fits:
                problems.append(f"input {index} is {dtype} {tuple(x.shape)}, expected float32 {expected}")
            elif x.shape[0] == 0:
                problems.append(f"input {index} holds no images")
        if problems:
            raise ConfigError("; ".join(problems))
        sizes = [x.shape[0] for x, shape in zip(given, self.input_shapes, strict=True) if shape[0] is None]
        if len(set(sizes)) > 1:
            raise ConfigError(f"the inputs hold batches of {' and '.join(map(str, sizes))} images, expected equal ones")


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def _dense(x: Any) -> np.ndarray:
    return x.detach().cpu().contiguous().numpy() if _is_torch(x) else np.ascontiguousarray(x)


_ALIGNMENT_BYTES = 64
"""TVM's kernels take tensors at this alignment for granted."""


def _shared(array: np.ndarray, tvm: Any) -> Any:
    """Returns the array as a TVM tensor: its own memory where that is aligned and writable, else a copy."""
    if array.ctypes.data % _ALIGNMENT_BYTES == 0 and array.flags.writeable:
        return tvm.runtime.from_dlpack(array)
    return tvm.runtime.tensor(array)


def _as_kind(tensor: Any, as_torch: bool) -> Any:
    if as_torch:
        import torch

        return torch.from_dlpack(tensor)
    return np.from_dlpack(tensor)
