"""Programs of `torch.export`, in memory or as a `.pt2` file -> Relax in QDQ form; PT2E quantization produces them."""

from __future__ import annotations

import operator
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax, tirx

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError, gist
from quantvm.frontend.program_inputs import importing, with_interface
from quantvm.frontend.torchscript import contractions, elementwise, pooling, rearranging, shapes  # noqa: F401  (registers the converters)
from quantvm.qdq import attributes
from quantvm.qdq.rewriting import built_main
from quantvm.storage.regular_files import check_regular, checked_path

from . import (  # noqa: F401  (registers the converters)
    aten,
    binary,
    creation,
    indexing,
    moving,
    norms,
    order,
    products,
    quantize,
    reductions,
    torchao_operators,
    unary,
    windows,
)
from .archive import read_program
from .aten import shared_converter
from .checks import check_operators, check_program
from .constants import CHECKS, SIZES, constant_calls, constant_result
from .decomposed import decomposed
from .interface import Result, exported_names, exported_outputs
from .nodes import described, layer, op_name, stale_reads
from .registry import find_exported
from .values import ExportedBuilder, Unreadable

ENGINE = "pt2e"
_COMPARISONS = (operator.ge, operator.le, operator.gt, operator.lt, operator.eq, operator.ne, operator.and_)


def from_exported_program(program_or_path: Any, *, batch: str = "dynamic") -> tvm.IRModule:
    """Returns the program in Relax QDQ form, with PyTorch's logical shapes (NCHW) and engine pt2e.

    Args:
        program_or_path: a `torch.export.ExportedProgram`, or the path of a `.pt2` file.
        batch: dynamic: dimension 0 of an input is symbolic if the program was exported so; static: every size is that
            of the example inputs of the export.

    Raises:
        UnsupportedOpError: operators that cannot be imported, all of them in one message.
        ModelImportError: not a program, not quantized, not converted, or bad parameters; names the node and its line.
    """
    with importing(program_or_path, batch):
        imported = _Import(importable(program_or_path), batch)
        module = imported.go().with_attr(attributes.ENGINE, ENGINE)
        return with_interface(module, imported.input_names, imported.outputs)


def import_with_quantized(program: Any) -> tuple[tvm.IRModule, list[tuple[Any, str, float, int]]]:
    """Returns a program that also returns, after its outputs, every tensor that it quantizes per tensor.

    The second result has each such tensor's node, layer name, scale and zero point.

    Args and errors: as `from_exported_program`.
    """
    imported = _Import(importable(program), "dynamic")
    module = imported.go(lambda results: [*results, *(expr for _, _, _, _, expr in imported.quantized)])
    found = [(node, name, scale, zero_point) for node, name, scale, zero_point, _ in imported.quantized]
    return module.with_attr(attributes.ENGINE, ENGINE), found


def importable(program_or_path: Any) -> Any:
    """Returns the exported program, with every operator supported, and in-place writes made explicit where necessary.

    Args and errors: as `from_exported_program`.
    """
    register_operators()
    program = program_or_path
    if isinstance(program, (str, Path)):
        program = load_program(checked_path(program, ModelImportError))
    if not isinstance(program, torch.export.ExportedProgram):
        raise ModelImportError(f"expected an ExportedProgram or the path of a .pt2 file, got {type(program).__name__}")
    check_program(program.graph.nodes)
    if next(stale_reads(program.graph, constant_calls(program)), None) is not None:
        program = program.run_decompositions({})  # makes writes in place explicit, and takes longer than the import
    rewritten = decomposed(program, _unsupported_calls)
    check_operators(_original_calls(_unsupported_calls(rewritten), program))
    return rewritten


def _original_calls(unknown: list[Any], program: Any) -> list[Any]:
    """Returns the original calls from which the unknown calls of the rewritten program come, or else the latter."""
    traces = [node.meta.get("stack_trace") for node in unknown]
    written = (
        [node for node in _unsupported_calls(program) if node.meta.get("stack_trace") in traces] if unknown else []
    )
    return written or unknown


def _unsupported_calls(program: Any) -> list[Any]:
    """Returns the calls of a program that cannot be imported."""
    constants = constant_calls(program)

    def is_known(node: Any) -> bool:
        name = op_name(node)
        return (
            find_exported(name) is not None
            or shared_converter(name) is not None
            or node.target in SIZES
            or node.target in _COMPARISONS
            or name in CHECKS
            or node in constants
        )

    return [node for node in program.graph.nodes if node.op == "call_function" and not is_known(node)]


def register_operators() -> None:
    """Registers the operators of quantized programs with torch."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def load_program(path: Path) -> Any:
    """Returns the program of a `.pt2` file without executing anything in it, see `archive.py`.

    Raises:
        ModelImportError: no such file, not one that this PyTorch can load, or one that holds more than a program.
        UnsupportedOpError: it calls functions outside of PyTorch's libraries of operators.
    """
    register_operators()
    check_regular(path, ModelImportError)
    if not zipfile.is_zipfile(path):
        raise ModelImportError(f"{path} is truncated or no .pt2 file: a .pt2 file is a ZIP archive")
    try:
        return read_program(path)
    except (ModelImportError, UnsupportedOpError) as error:
        raise type(error)(f"{path} is no .pt2 file that can be opened: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises any kind, even KeyError, for a foreign archive
        raise ModelImportError(
            f"{path} is no .pt2 file that PyTorch {torch.__version__} can load: {_reason(error)}. "
            "Write one with torch.export.save(torch.export.export(model, inputs), path)"
        ) from error


def _reason(error: BaseException) -> str:
    """Returns the most informative line of an error; PyTorch's messages contain whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if "Traceback" in str(error) and lines else lines[0] if lines else ""
    return told[:300] if " " in told else f"{type(error).__name__}: {told[:300]}"


class _Import:
    """One walk over a program."""

    def __init__(self, program: Any, batch: str) -> None:
        self._program, self._batch = program, batch
        self._values: dict[Any, Any] = {}
        self._params: list[Any] = []
        self.input_names: list[str] = []
        self.outputs: Any = None
        self.quantized: list[tuple[Any, str, float, int, Any]] = []
        self._constants = constant_calls(program)

    def go(self, results_of: Callable[[list[Any]], list[Any]] = list) -> tvm.IRModule:
        """Returns the module; `results_of` maps the program's outputs to the function's."""
        self._bind_inputs()

        def body(block_builder: relax.BlockBuilder) -> Any:
            builder = ExportedBuilder(block_builder)
            for node in self._program.graph.nodes:
                if node.op == "call_function":
                    self._convert(builder, node)
            results = results_of(self._results(builder))
            return results[0] if len(results) == 1 else relax.Tuple(results)

        return relax.transform.DeadCodeElimination()(built_main(self._params, body))

    # ------------------------------------------------------------------ inputs and outputs

    def _bind_inputs(self) -> None:
        kinds = torch.export.graph_signature.InputKind
        state = {**self._program.state_dict, **self._program.constants}
        placeholders = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        inputs, leaves = [], []
        for spec in self._program.graph_signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind == kinds.USER_INPUT:
                constant = isinstance(spec.arg, torch.export.graph_signature.ConstantArgument)
                leaves.append(None if constant else node)
                if constant:
                    self._values[node] = spec.arg.value
                else:
                    inputs.append(node)
            elif spec.target in state and isinstance(state[spec.target], torch.Tensor):
                self._values[node] = state[spec.target].detach()
            else:
                raise ModelImportError(f"{described(node)} is a {spec.kind.name.lower()}, expected a tensor")
        self.input_names = exported_names(self._program, leaves)
        symbols: dict[str, Any] = {}
        for index, node in enumerate(inputs):
            shape = self._input_shape(node, index, symbols)
            name = f"input_{index}" if len(inputs) > 1 else "input"
            self._values[node] = relax.Var(name, relax.TensorType(shape, "float32"))
            self._params.append(self._values[node])

    def _input_shape(self, node: Any, index: int, symbols: dict[str, Any]) -> list[Any]:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise ModelImportError(f"input {index} ({node.name}) is no tensor; export the program without it")
        if value.dtype != torch.float32:
            raise ModelImportError(f"input {index} ({node.name}) has dtype {value.dtype}, expected float32")
        if self._batch == "static":
            return self._example_shape(node, index)
        shape: list[Any] = []
        for at, size in enumerate(value.shape):
            if isinstance(size, int):
                shape.append(size)
            elif not str(size).isidentifier():
                raise ModelImportError(
                    f"dimension {at} of input {index} ({node.name}) is dynamic: {tuple(map(str, value.shape))}, and "
                    "computed; export with a torch.export.Dim alone, or use batch='static' (--batch static)"
                )
            else:
                name = str(size)
                symbols.setdefault(name, tirx.Var("n" if not symbols else f"n_{len(symbols)}", "int64"))
                shape.append(symbols[name])
        return shape

    def _example_shape(self, node: Any, index: int) -> list[int]:
        sizes = list(node.meta["val"].shape)
        if all(isinstance(size, int) for size in sizes):
            return sizes
        examples = torch.utils._pytree.tree_leaves(self._program.example_inputs or ())
        if index >= len(examples):
            raise ModelImportError(
                "batch='static' of a program without example inputs; export it without dynamic_shapes"
            )
        return list(examples[index].shape)

    def _results(self, builder: ExportedBuilder) -> list[Any]:
        builder.where = "output"
        specs = self._program.graph_signature.output_specs
        (output,) = (node for node in self._program.graph.nodes if node.op == "output")
        kinds = torch.export.graph_signature.OutputKind
        leaves: list[Any] = []
        for spec, argument in zip(specs, output.args[0], strict=True):
            if spec.kind != kinds.USER_OUTPUT:
                continue
            if not isinstance(argument, torch.fx.Node):
                leaves.append(argument)
                continue
            value = builder.relax_of(self._values.get(argument))
            if not isinstance(getattr(value, "ty", None), relax.TensorType):
                raise ModelImportError(f"output {len(leaves)} of the program is {argument}, expected a tensor")
            leaves.append(Result(value))
        self.outputs, found = exported_outputs(self._program, leaves)
        if not found:
            raise ModelImportError("the program returns no tensor")
        return [result.value for result in found]

    # ------------------------------------------------------------------ operators

    def _convert(self, builder: ExportedBuilder, node: Any) -> None:
        """Binds the value of a call."""
        name = op_name(node)
        if name in CHECKS or node.target in _COMPARISONS:
            return
        builder.where, builder.node = layer(node), node
        try:
            self._values[node] = self._converted(builder, node, name)
            if name == "quantized_decomposed::quantize_per_tensor.default":
                scale, zero_point = node.args[1:3]
                self.quantized.append((node, builder.where, float(scale), int(zero_point), self._values[node]))
        except QuantvmError as error:
            raise type(error)(f"{described(node)} cannot be imported: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # TVM raises any kind of error
            raise ModelImportError(f"{described(node)} cannot be imported: {gist(error)}") from error

    def _converted(self, builder: ExportedBuilder, node: Any, name: str) -> Any:
        if node in self._constants:
            return constant_result(node, self._values)
        arguments, keywords = self._arguments(node)
        if node.target in SIZES:
            return node.target(*arguments)
        converter = find_exported(name)
        if converter is not None:
            return converter(builder, *arguments, **keywords)
        converter = shared_converter(name)
        assert converter is not None, name
        return converter(builder, *builder.relax_of(_filled(node, arguments, keywords)))

    def _arguments(self, node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def value(argument: Any) -> Any:
            found = self._values[argument]
            return found.expression() if isinstance(found, Unreadable) else found

        return (
            torch.fx.node.map_arg(node.args, value),
            torch.fx.node.map_arg(node.kwargs, value),
        )


def _filled(node: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
    """Returns all arguments of a call by position, with the defaults of the op's schema."""
    filled = []
    for index, argument in enumerate(node.target._schema.arguments):
        value = arguments[index] if index < len(arguments) else keywords.get(argument.name, argument.default_value)
        if argument.name == "dtype" and value not in (None, torch.float32):
            raise ModelImportError(f"asks for {value}, expected float32")
        filled.append(value)
    return filled


__all__ = ["ENGINE", "from_exported_program", "import_with_quantized", "load_program"]
