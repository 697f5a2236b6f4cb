"""The reference of a model: the framework that it came from computes the expected outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantvm.choices import ENGINES
from quantvm.errors import last_line
from quantvm.frontend.exported.interface import exported_call
from quantvm.frontend.interface import parameters_of_model, split_examples
from quantvm.structure import take_apart

from .litert import UNDEFINED_QUOTIENT, is_defined, needs_optimized_kernels
from .torch_state import TorchState

Arrays = list[np.ndarray]
Running = Callable[[Sequence[np.ndarray]], Arrays]
"""The inputs of one call, in order -> the outputs, nested ones flattened."""
Nesting = Callable[[Sequence[Any]], Any] | None


@dataclass(frozen=True)
class Reference:
    """A framework's run of a model.

    Attributes:
        name: of the framework, with the engine if it has several.
        version: of the framework.
        run: computes the outputs.
    """

    name: str
    version: str
    run: Running

    @property
    def text(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


class NoReferenceError(Exception):
    """There is no reference on this machine; the message says why."""


def reference_name(model_or_path: Any, state: TorchState) -> tuple[str, str]:
    """Returns name and version of a model's reference, without loading the model there."""
    held = type(model_or_path).__name__
    if isinstance(model_or_path, (str, Path)):
        from quantvm.frontend.entry import format_of

        held = format_of(Path(model_or_path))
    if held == "tflite":
        kernels = "optimized" if needs_optimized_kernels(model_or_path) else "reference"
        return f"LiteRT, {kernels} kernels,", _version("ai-edge-litert")
    if held in ("onnx", "ModelProto"):
        return "ONNX Runtime, unfused,", _version("onnxruntime")
    return (f"PyTorch ({state.engine})" if state.engine in ENGINES else "PyTorch"), torch.__version__


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def reference_of(model_or_path: Any, nested: Callable[[Sequence[Any]], Any] | None, state: TorchState) -> Reference:
    """Returns the framework's own run of what `quantvm.compile` takes.

    Args:
        model_or_path: as for `quantvm.compile`.
        nested: nests the inputs of a call like the example; None without an example.
        state: how PyTorch computes; other runtimes have as many threads.

    Raises:
        NoReferenceError: the framework is not installed, or cannot load the model.
    """
    return Reference(*reference_name(model_or_path, state), _run_of(model_or_path, nested, state))


def _run_of(model_or_path: Any, nested: Nesting, state: TorchState) -> Running:
    if isinstance(model_or_path, (str, Path)):
        from quantvm.frontend.entry import format_of

        held = format_of(Path(model_or_path))
        if held == "tflite":
            return _litert(str(model_or_path), state)
        if held == "onnx":
            return _onnxruntime(str(model_or_path), state)
        return _torch(_loaded(Path(model_or_path), held), nested, state)
    if type(model_or_path).__name__ == "ModelProto":
        return _onnxruntime(model_or_path.SerializeToString(), state)
    return _torch(model_or_path, nested, state)


def _loaded(path: Path, held: str) -> Any:
    if held == "exported":
        from quantvm.frontend.exported.importer import load_program

        return load_program(path)
    from quantvm.frontend.torchscript.loading import load_script

    return load_script(path)


# ------------------------------------------------------------------ PyTorch


def _torch(model: Any, nested: Nesting, state: TorchState) -> Running:
    is_program = isinstance(model, torch.export.ExportedProgram)
    call = model.module() if is_program else model

    def run(inputs: Sequence[np.ndarray]) -> Arrays:
        tensors = [torch.from_numpy(np.array(x, order="C")) for x in inputs]
        arguments: Sequence[Any] = tensors
        keywords: dict[str, Any] = {}
        if is_program:
            arguments, keywords = exported_call(model, tensors)
        elif nested is not None:
            arguments, keywords = split_examples(nested(tensors), parameters_of_model(model)[0])
        with state.active(), torch.inference_mode():
            result = call(*arguments, **keywords)
        found = take_apart(result, lambda y: isinstance(y, torch.Tensor))[1]
        return [(y.dequantize() if y.is_quantized else y).detach().contiguous().numpy() for y in found]

    return run


# ------------------------------------------------------------------ other runtimes


def _onnxruntime(model: str | bytes, state: TorchState) -> Running:
    from quantvm.frontend.onnx.layers import has_onnxruntime, unfused_session

    if not has_onnxruntime():
        raise NoReferenceError("ONNX Runtime is not installed (pip install onnxruntime)")
    try:
        session = unfused_session(model, threads=state.threads)
    except Exception as error:  # ONNX Runtime's errors have no other common base class
        raise NoReferenceError(f"ONNX Runtime cannot load the model: {last_line(error)}") from error
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> Arrays:
        return [np.asarray(y) for y in session.run(None, dict(zip(names, inputs, strict=True)))]

    return run


def _litert(path: str, state: TorchState) -> Running:
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise NoReferenceError("LiteRT is not installed (pip install ai-edge-litert)")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if not is_defined(path):
        raise NoReferenceError(UNDEFINED_QUOTIENT)
    kinds = OpResolverType  # the optimized kernels do not round as TFLite defines its operators
    kernels = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if needs_optimized_kernels(path) else kinds.BUILTIN_REF
    try:
        interpreter = Interpreter(path, num_threads=state.threads, experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
    except Exception as error:  # LiteRT raises several of Python's own types
        raise NoReferenceError(f"LiteRT cannot load the model: {last_line(error)}") from error

    def run(inputs: Sequence[np.ndarray]) -> Arrays:
        for place, x in zip(interpreter.get_input_details(), inputs, strict=True):
            if tuple(place["shape"]) != x.shape:
                interpreter.resize_tensor_input(place["index"], x.shape)
        interpreter.allocate_tensors()
        for place, x in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(place["index"], np.ascontiguousarray(x))
        interpreter.invoke()
        return [interpreter.get_tensor(place["index"]) for place in interpreter.get_output_details()]

    return run
