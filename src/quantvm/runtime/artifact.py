"""A compiled model: maps a batch to its outputs, and reports how it was compiled."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quantvm.errors import INPUTS_MISFIT, ConfigError, RunError, stage
from quantvm.structure import in_order, put_together

from .forking import check_thread, follow
from .interchange import Given, given, returned, shared
from .requirements import Requirements
from .signature import Signature
from .target import physical_cores
from .verdict import NOT_ASKED, Verification


@dataclass(frozen=True)
class CompileReport:
    """How a model was compiled.

    Attributes:
        import_s: seconds from the torch program to Relax QDQ; None for a model from a file.
        compile_s: seconds of lowering and code generation; None if another process did that.
        int8_mac_share: share of the multiply-adds that run in int8 kernels, 0..1.
        float_ops: operators left in float.
        target: TVM target.
        kernels: how often each kernel is called.
        engine: PyTorch engine whose arithmetic is reproduced.
        numerics: torch, qdq, integer, integer:to_even or integer:away.
        threads: PyTorch's thread count that is reproduced.
        output_scale: step of the output's quantization; None if the output is not just dequantized.
        float_reasons: why each of `float_ops` stays float, in their order.
        cached: whether the code comes from an earlier compilation.
        load_s: seconds of loading the code from a file; None if it was compiled in this process.
        verification: how the code's outputs compare with the reference's.
    """

    import_s: float | None
    compile_s: float | None
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
    verification: Verification = NOT_ASKED


class Library(Protocol):
    """The code of a compiled model, in memory or in a file."""

    def start(self) -> Any:
        """Returns the model's main function, which a Relax VM runs."""
        ...

    def write(self, path: Path) -> None:
        """Writes the code as a shared library."""
        ...


class Artifact:
    """A compiled model. Calling it maps float32 inputs to outputs, which are tensors of the same library.

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
        self.key: str | None = None  # the code's key in the cache, whether it is there or not
        # A Relax VM keeps its registers from call to call, so only one thread may run it at a time. Forks wait, too.
        self.lock = threading.Lock()
        self._main: Any = None
        follow(self)

    def __del__(self) -> None:
        """Unloads the code, and gives back the working memory that TVM keeps for it."""
        if getattr(self, "_main", None) is None or sys is None or sys.is_finalizing():  # None: modules are gone
            return
        from quantvm.tvm_compat import release_pooled_memory

        del self._main, self.library
        release_pooled_memory()

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{spec.name} {spec.dtype} {spec.shape_text}" for spec in specs)
            for specs in (self.signature.inputs, self.signature.outputs)
        )
        return (
            f"<quantvm.Artifact {inputs} -> {outputs}; numerics {self.report.numerics}, engine {self.report.engine}, "
            f"{self.report.target}; verified: {self.report.verification.text}>"
        )

    @property
    def verification(self) -> Verification:
        """How its outputs compare with the reference's."""
        return self.report.verification

    @property
    def input_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Logical shape of every input; None where a dimension is dynamic."""
        return tuple(spec.shape for spec in self.signature.inputs)

    def prepare(self) -> None:
        """Gets the code ready to run; otherwise the first call does so.

        Raises:
            MachineError: this machine cannot run the code.
        """
        with self.lock:
            self._prepare()

    def _prepare(self) -> None:
        if self._main is not None:
            return
        self.requirements.check(f"the code for {self.report.target}")
        # TVM's pool reads both when it starts. Without them it would miscount cores on CPUs without hyperthreads,
        # and pin this process's threads, including PyTorch's, to single cores.
        os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        self._main = self.library.start()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the model to one file, which `quantvm.load` reads without PyTorch; returns its path.

        The same model, compiled with the same options and versions, is the same file, byte by byte.

        Raises:
            CompileError: there is no C++ linker, or it fails.
            OutputError: the file cannot be written. Only regular files are replaced; for a symlink, its target is.
        """
        from .model_file import write_model_file

        return write_model_file(self, Path(path))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Returns the output, or several nested as the model nests them, as tensors of the first input's library.

        Inputs are given in order, by name, or in dicts and lists as the model takes them; `signature` has their names.

        Tensors of NumPy, PyTorch, TVM and any other library with `__dlpack__` are taken by DLPack; for other libraries,
        NumPy arrays are returned. An input is copied only if its memory is not 64-byte aligned, not in C order, or
        read-only. An output is never copied, and belongs to the caller.

        Raises:
            ConfigError: the number, dtype, shape or device of the inputs is not the compiled one.
            MachineError: this machine cannot run the code.
            RunError: the code stopped on these inputs: sizes do not fit its reshapes or products, indices are out of
                range, or there is not enough memory.
        """
        import tvm

        try:
            tensors = [given(x) for x in in_order([spec.name for spec in self.signature.inputs], inputs, named)]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._check(tensors)
        with self.lock, stage("running the compiled model", RunError):
            self._prepare()
            check_thread()
            result = self._run([shared(x, tvm) for x in tensors])
        kind = tensors[0].kind
        if hasattr(result, "numpy"):
            if self.signature.structure is None:
                return returned(result, kind)
            result = [result]
        outputs = tuple(returned(r, kind) for r in result)
        return outputs if self.signature.structure is None else put_together(self.signature.structure, outputs)

    def _run(self, tensors: list[Any]) -> Any:
        try:
            return self._main(*tensors)
        except Exception as error:  # TVM raises several types
            told = str(error)
            if INPUTS_MISFIT in told:
                raise RunError(told[told.index(INPUTS_MISFIT) :].strip()) from error
            if "bad_alloc" in told:
                shapes = ", ".join(str(tuple(map(int, x.shape))) for x in tensors)
                raise RunError(
                    f"there is not enough memory for inputs of {shapes}; give fewer images a call"
                ) from error
            raise

    def _check(self, tensors: list[Given]) -> None:
        specs = self.signature.inputs
        problems = []
        for index, (x, spec) in enumerate(zip(tensors, specs, strict=True)):
            fits = len(x.shape) == len(spec.shape) and all(
                e in (None, a) for a, e in zip(x.shape, spec.shape, strict=True)
            )
            if x.problem is not None:
                problems.append(f"input {index} is {x.problem}")
            elif x.dtype != spec.dtype or not fits:
                problems.append(f"input {index} is {x.dtype} {x.shape}, expected {spec.dtype} {spec.shape_text}")
            elif 0 in x.shape[:1]:
                problems.append(f"input {index} holds no images")
        if problems:
            raise ConfigError("; ".join(problems))
        sizes: dict[str, set[int]] = {}
        for x, spec in zip(tensors, specs, strict=True):
            for size, symbol in zip(x.shape, spec.dimensions, strict=True):
                if isinstance(symbol, str):
                    sizes.setdefault(symbol, set()).add(size)
        for symbol, found in sizes.items():
            if len(found) > 1:
                raise ConfigError(
                    f"the inputs hold batches of {' and '.join(map(str, sorted(found)))} images, expected equal ones"
                    + ("" if symbol == "n" else f" ({symbol})")
                )
