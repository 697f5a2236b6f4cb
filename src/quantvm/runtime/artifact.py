"""A compiled model: maps a batch to its outputs, and says what was made of it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantvm.errors import ConfigError

from .requirements import Requirements
from .signature import Signature
from .target import physical_cores


@dataclass(frozen=True)
class CompileReport:
    """How a model was compiled.

    Attributes:
        import_s: seconds from the torch program to Relax QDQ.
        compile_s: seconds of lowering and code generation, when that was done.
        int8_mac_share: share of the multiply-adds that run in int8 kernels, 0..1.
        float_ops: operators left in float.
        target: TVM target.
        kernels: how often each kernel is called.
        engine: PyTorch engine whose arithmetic is reproduced.
        numerics: torch, integer, integer:to_even or integer:away.
        threads: PyTorch's thread count that is reproduced.
        output_scale: step of the output's quantization; None if the output is not just dequantized.
        float_reasons: why each of `float_ops` stays float, in their order.
        cached: whether the code is of an earlier compilation.
        load_s: seconds of loading the code from a file; None if it was compiled in this process.
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
    float_reasons: tuple[str, ...] = ()
    cached: bool = False
    load_s: float | None = None


class Library(Protocol):
    """The code of a compiled model, in memory or in a file."""

    def start(self) -> Any:
        """Returns the model's main function, which a Relax VM runs."""
        ...

    def write(self, path: Path) -> None:
        """Writes the code as a shared library."""
        ...


class Artifact:
    """A compiled model. Calling it maps float32 inputs to outputs; torch tensors in, torch tensors out.

    Several threads may call it; they take turns, each call using all of TVM's threads.

    Args:
        library: its code.
        signature: what it takes and returns.
        report: how it was compiled.
        requirements: what the code needs of a machine.
    """

    def __init__(
        self, library: Library, signature: Signature, report: CompileReport, requirements: Requirements
    ) -> None:
        self.library, self.signature, self.report, self.requirements = library, signature, report, requirements
        # A Relax VM keeps its registers from call to call: it must not be entered twice at once.
        self._lock = threading.Lock()
        self._main: Any = None

    @property
    def input_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Logical shape of every input; None where a dimension is dynamic."""
        return tuple(spec.shape for spec in self.signature.inputs)

    def prepare(self) -> None:
        """Gets the code ready to run, which the first call does otherwise.

        Raises:
            MachineError: this machine cannot run the code.
        """
        with self._lock:
            self._prepare()

    def _prepare(self) -> None:
        if self._main is not None:
            return
        self.requirements.check(f"the code for {self.report.target}")
        # TVM's pool reads both when it starts. It would count hyperthreads wrongly on CPUs that have none, and pin this
        # process's threads to single cores, PyTorch's among them.
        os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        self._main = self.library.start()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the model to one file, which `quantvm.load` reads without PyTorch; returns its path.

        Raises:
            CompileError: there is no C++ linker, or it fails.
            ModelFileError: the file cannot be written.
        """
        from .model_file import write_model_file

        return write_model_file(self, Path(path))

    def __call__(self, *inputs: Any) -> Any:
        """Returns the output, or a tuple of several, of the same kind (NumPy or torch) as the first input.

        Raises:
            ConfigError: the number, dtype or shape of the inputs is not the compiled one.
            MachineError: this machine cannot run the code.
        """
        import tvm

        given = [x if _is_torch(x) else np.asarray(x) for x in inputs]
        self._check(given)
        arrays = [_dense(x) for x in given]
        with self._lock:
            self._prepare()
            result = self._main(*(_shared(a, tvm) for a in arrays))
        as_torch = _is_torch(inputs[0])
        if hasattr(result, "numpy"):
            return _as_kind(result, as_torch)
        return tuple(_as_kind(r, as_torch) for r in result)

    def _check(self, given: list[Any]) -> None:
        specs = self.signature.inputs
        if len(given) != len(specs):
            raise ConfigError(f"the model takes {len(specs)} inputs, got {len(given)}")
        problems = []
        for index, (x, spec) in enumerate(zip(given, specs, strict=True)):
            shape = spec.shape
            fits = len(x.shape) == len(shape) and all(e in (None, a) for a, e in zip(x.shape, shape, strict=True))
            dtype = str(x.dtype).removeprefix("torch.")
            if dtype != spec.dtype or not fits:
                problems.append(f"input {index} is {dtype} {tuple(x.shape)}, expected {spec.dtype} {spec.shape_text}")
            elif x.shape[0] == 0:
                problems.append(f"input {index} holds no images")
        if problems:
            raise ConfigError("; ".join(problems))
        sizes = [x.shape[0] for x, spec in zip(given, specs, strict=True) if spec.shape[0] is None]
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
