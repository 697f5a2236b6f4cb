"""Turns a user's model into a TorchScript program that can be imported, or raises an error that says what to do."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantvm.choices import ENGINES
from quantvm.errors import ModelImportError, UnsupportedOpError, first_line, gist
from quantvm.frontend.interface import Arguments, arguments_of, flattened, parameters_of_model
from quantvm.frontend.registry import find_converter, supported_ops
from quantvm.frontend.source import Source
from quantvm.frontend.torch_cpu import torch_cpu
from quantvm.numerics.pytorch import PyTorch
from quantvm.storage.regular_files import checked_path, open_regular
from quantvm.structure import Structure
from quantvm.torch_compat import quiet, trigger_quantized_warnings

from .aliases import stale_reads
from .archive import check_script_file
from .known import known_values, without_converter
from .nodes import module_path, source_line


@dataclass(frozen=True)
class Program:
    """A TorchScript program whose operators can all be imported.

    Attributes:
        script: the program.
        arguments: the example arguments, in the caller's structure; `script` of a recorded program takes tensors.
        pytorch: whose arithmetic it has.
        is_recorded: whether it was recorded here from a live module.
        outputs: the structure of a recorded program's outputs; other programs' follows from their graph.
    """

    script: torch.jit.ScriptModule
    arguments: Arguments
    pytorch: PyTorch
    is_recorded: bool
    outputs: Structure | None = None


def load_program(source: Source) -> Program:
    """Returns the program as TorchScript, whose operators can all be imported."""
    engine = source.engine or getattr(source.model, "quantvm_engine", None) or torch.backends.quantized.engine
    if engine not in ENGINES:
        raise ModelImportError(f"unknown quantization engine {engine!r}, expected one of {', '.join(ENGINES)}")
    program = _program(source, PyTorch(engine, cpu=torch_cpu()))
    _check_ops(program.script.inlined_graph)
    return program


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Returns the program of a TorchScript file.

    Nothing in the file is executed except for restoring PyTorch's own modules, see `check_script_file`.

    Raises:
        ModelImportError: no such file, or not one that this PyTorch can load.
    """
    trigger_quantized_warnings()
    with open_regular(path, ModelImportError) as file:
        try:
            check_script_file(file)
            file.seek(0)
            with quiet():
                return torch.jit.load(file, map_location="cpu")
        except ModelImportError as error:
            raise ModelImportError(f"{path} is not a TorchScript file that can be opened: {error}") from error
        except Exception as error:  # mostly RuntimeError, but any kind on damaged archives
            raise ModelImportError(
                f"{path} is not a TorchScript file that PyTorch {torch.__version__} can load, or damaged: "
                f"{first_line(error)}"
            ) from error


def _program(source: Source, pytorch: PyTorch) -> Program:
    model, example_inputs = source.model, source.example_inputs
    with quiet():
        if isinstance(model, (str, Path)):
            model = load_script(checked_path(model, ModelImportError))
        if isinstance(model, torch.jit.ScriptModule):
            return Program(model, arguments_of(example_inputs, *parameters_of_model(model)), pytorch, is_recorded=False)
        if not isinstance(model, torch.nn.Module):
            raise ModelImportError(f"expected an nn.Module, a traced module or a path, got {type(model).__name__}")
        if model.training:
            raise ModelImportError("the model is in training mode; call model.eval() first")
        # PyTorch's own quantized modules convert their scale to a number; recording it as a constant is intended
        scale_readers = r"torch\.(ao\.nn\.quantized|_ops)"
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=scale_readers)
        arguments = arguments_of(example_inputs, *parameters_of_model(model))
        inputs = arguments.tensors
        if not inputs:
            raise ModelImportError("the example inputs hold no tensor")
        try:
            with torch.no_grad(), flattened(model, arguments) as outputs:
                script = torch.jit.trace(model, inputs, check_trace=False)
            return Program(script, arguments, pytorch, is_recorded=True, outputs=outputs[-1])
        except (MemoryError, ModelImportError):
            raise
        except Exception as error:  # the model's own code runs here
            given = " and ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in inputs)
            raise ModelImportError(
                f"the {type(model).__name__} cannot be recorded by torch.jit.trace on the example inputs "
                f"{given or '(none)'}: {gist(error)}; check that model(*example_inputs) runs in PyTorch and returns "
                "tensors"
            ) from error


def _check_ops(graph: Any) -> None:
    """Raises one error for everything that cannot be imported."""
    nodes = list(graph.nodes())
    kinds = collections.Counter(node.kind() for node in nodes)
    fake = [k for k in kinds if "fake_quant" in k]
    if fake:
        raise ModelImportError(
            f"the model holds {', '.join(fake)}: quantization-aware training that was not converted; "
            "call torch.ao.quantization.convert(model.eval()) first"
        )
    if not any(k == "aten::quantize_per_tensor" or k.startswith("quantized::") for k in kinds):
        raise ModelImportError(
            "no quantized operator found: this is a float model; quantize it first (quantvm.quantize)"
        )
    check_converters(graph)
    for write, read in stale_reads(graph, known_values(graph.nodes())):
        raise ModelImportError(
            f"{write.kind()} at {module_path(write) or 'graph'} ({source_line(write)}) writes in place to a tensor "
            f"that {read.kind()} at {module_path(read) or 'graph'} ({source_line(read)}) reads under another name; "
            f"use {write.kind().removesuffix('_')}, which returns a new tensor"
        )


def check_converters(block: Any, outside: Iterable[str] = ()) -> None:
    """Raises one error for all operators of a graph or block without a converter.

    Args:
        block: a graph, or a branch of one.
        outside: names of the known values that a branch reads.
    """
    missing: dict[str, list[Any]] = {}
    for node in without_converter(block.nodes(), known_values(block.nodes(), outside), _has_converter):
        missing.setdefault(node.kind(), []).append(node)
    if missing:
        rows = [
            f"{kind} x{len(found)} (first: {module_path(found[0]) or 'graph'}, {source_line(found[0])})"
            for kind, found in missing.items()
        ]
        raise UnsupportedOpError(
            f"{len(missing)} unsupported ops: {'; '.join(rows)}. Of TorchScript, {len(supported_ops())} are supported "
            "(`quantvm list ops`). A saved file cannot be changed, but its float model can be quantized by PT2E "
            "instead (quantvm.quantize with flow='pt2e', or torchao's prepare_pt2e and convert_pt2e), where more "
            "operators are; to add one in code: quantvm.register_converter"
        )


def _has_converter(kind: str) -> bool:
    return kind == "prim::If" or find_converter(kind) is not None
