"""TorchScript -> Relax in QDQ form: walks a traced graph and calls the converter of each node.

Quantization parameters and dtypes are propagated forward, because TorchScript's types only say `Tensor`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import tvm
from tvm import relax, tirx

from quantvm.errors import ModelImportError, UnsupportedOpError, gist, part
from quantvm.frontend.builder import QdqBuilder, QTensor, constant, shape_of
from quantvm.frontend.layers import Layer, LayeredProgram, is_channels_last
from quantvm.frontend.program_inputs import importing, with_interface
from quantvm.frontend.registry import find_converter
from quantvm.frontend.source import Source
from quantvm.qdq import attributes
from quantvm.qdq.rewriting import built_main
from quantvm.structure import put_together, take_apart

from . import (  # noqa: F401  (registers the converters)
    activations,
    contractions,
    elementwise,
    float_contractions,
    float_elementwise,
    normalization,
    pooling,
    rearranging,
    scalars,
    shapes,
)
from .known import TAKES_KNOWN, as_arguments, compute, is_computable, is_known
from .layers import TorchScriptSource
from .loading import Program, check_converters, load_program
from .nodes import module_path, source_line, weight_owner
from .torch_tables import with_torch_tables


def from_torch(model: Any, example_inputs: Any, *, engine: str | None = None, batch: str = "dynamic") -> tvm.IRModule:
    """Returns the model in Relax QDQ form, with PyTorch's logical shapes (NCHW).

    Args:
        model: an eager-quantized `nn.Module`, a traced module, or the path of a saved TorchScript file.
        example_inputs: one float32 tensor or a sequence of them; they give the function's input shapes. If they are
            channels-last, the function returns the bits that PyTorch returns for channels-last inputs.
        engine: PyTorch engine that the model was quantized for; by default the model's attribute
            `quantvm_engine`, else `torch.backends.quantized.engine`.
        batch: dynamic: dimension 0 of every input is symbolic; static: it is the example's.

    Raises:
        UnsupportedOpError: operators without a converter, all of them in one message.
        ModelImportError: no quantized operator, unconverted quantization-aware training, or bad parameters.
    """
    return import_torch(Source(model, example_inputs, engine, batch))


def import_torch(source: Source) -> tvm.IRModule:
    """Returns what `from_torch` does."""
    with importing(source.model, source.batch):
        program = load_program(source)
        conversion = _Conversion(program, source.batch)
        module = _with_torch_attributes(program, conversion.go(lambda results: results))
        return with_interface(module, program.arguments.input_names(), conversion.outputs)


def import_layers(source: Source) -> LayeredProgram:
    """Returns the model with every quantized tensor as an output, for batches of the example's size.

    `source.batch` is ignored. Errors: as `from_torch`.
    """
    with importing(source.model):
        return _layers_of(load_program(replace(source, batch="static")))


def _layers_of(program: Program) -> LayeredProgram:
    conversion = _Conversion(program, "static")
    n_outputs = 0

    def with_layers(results: list[Any]) -> list[Any]:
        nonlocal n_outputs
        n_outputs = len(results)
        return [*results, *(tensor.expr for _, tensor in conversion.layers)]

    chained = _with_torch_attributes(program, conversion.go(with_layers))
    layers = tuple(layer for layer, _ in conversion.layers)
    return LayeredProgram(TorchScriptSource(program.script), layers, chained, n_outputs, program.arguments.tensors)


def _with_torch_attributes(program: Program, module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with attributes that describe the bits it must return: this PyTorch's, for such inputs."""
    attrs = attributes.of_pytorch(program.pytorch)
    channels_last = [i for i, x in enumerate(program.arguments.tensors) if is_channels_last(x)]
    attrs |= {attributes.CHANNELS_LAST: channels_last} if channels_last else {}
    return with_torch_tables(module.with_attrs(attrs))


class _Conversion:
    """One walk over a graph.

    Args:
        program: the program.
        batch: dynamic or static.

    Attributes:
        layers: the quantized tensors.
        outputs: the structure of the results, after `go`.
    """

    def __init__(self, program: Program, batch: str) -> None:
        script, inputs = program.script, program.arguments.tensors
        self._graph = graph = script.inlined_graph
        self._values: dict[str, Any] = {}
        self._tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._paths: dict[str, str] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self.layers: list[tuple[Layer, QTensor]] = []
        self.outputs = program.outputs
        self._params = []
        for index, (x, shape) in enumerate(zip(inputs, _shapes(inputs, batch), strict=True)):
            if x.dtype != torch.float32:
                raise ModelImportError(f"example input {index} has dtype {x.dtype}, expected float32")
            var = relax.Var(f"input_{index}" if len(inputs) > 1 else "input", relax.TensorType(shape, "float32"))
            self._params.append(var)
        owner, *names = (v.debugName() for v in graph.inputs())
        self._values[owner] = script
        given = self._params if program.is_recorded else program.arguments.filled(self._params)
        if not program.is_recorded:
            given += [argument.default_value for argument in script.forward.schema.arguments[1 + len(given) :]]
        if len(names) != len(given):
            raise ModelImportError(f"the model takes {len(names)} inputs, got {len(given)} example inputs")
        self._values.update(zip(names, given, strict=True))

    def go(self, results_of: Callable[[list[Any]], list[Any]]) -> tvm.IRModule:
        """Returns the module; `results_of` maps the program's outputs to the function's."""

        def body(block_builder: relax.BlockBuilder) -> Any:
            builder = QdqBuilder(block_builder)
            self._convert_block(builder, self._graph)
            with part("the outputs"):
                flat = results_of(self._results(builder))
            return flat[0] if len(flat) == 1 else relax.Tuple(flat)

        return built_main(self._params, body)

    def _results(self, builder: QdqBuilder) -> list[Any]:
        """Returns the tensors of the graph's result; its structure becomes `outputs` if it is not known yet."""
        (value,) = (self._values[v.debugName()] for v in self._graph.outputs())
        builder.where = "output"
        if self.outputs is not None:  # a recorded graph returns a tuple or one tensor
            value = put_together(self.outputs, value if isinstance(value, tuple) else [value])
        try:
            self.outputs, tensors = take_apart(value, _is_result)
        except TypeError as error:
            raise ModelImportError(
                f"the model's output cannot be compiled: {error}. A size that depends on a dynamic batch "
                "cannot be returned: leave it out, or use batch='static'"
            ) from error
        if not tensors:
            raise ModelImportError("the model returns no tensor")
        return [_result(builder, tensor) for tensor in tensors]

    def _convert_block(self, builder: QdqBuilder, block: Any) -> None:
        """Converts the nodes of the graph, or of the branch that is taken."""
        for node in block.nodes():
            if node.kind() == "prim::If":
                self._convert_branch(builder, node)
                continue
            with part(lambda: f"{node.kind()} at {builder.where} ({source_line(node)})"):  # noqa: B023
                made = self._convert_node(builder, node)
                self._record_layer(builder, node, made)

    def _convert_branch(self, builder: QdqBuilder, node: Any) -> None:
        """Converts the branch of a scripted `if` whose condition follows from shapes and options."""
        condition = self._values[next(iter(node.inputs())).debugName()]
        if not isinstance(condition, (bool, torch.Tensor)):
            raise ModelImportError(
                f"control flow at {module_path(node) or 'the graph'} ({source_line(node)}) depends on the batch or on "
                "the data; trace the model (torch.jit.trace) instead of scripting it"
            )
        then, otherwise = node.blocks()
        block = then if bool(condition) else otherwise
        check_converters(block, [name for name, value in self._values.items() if is_known(value)])
        self._convert_block(builder, block)
        for output, value in zip(node.outputs(), block.outputs(), strict=True):
            self._values[output.debugName()] = self._values[value.debugName()]

    def _convert_node(self, builder: QdqBuilder, node: Any) -> Any:
        """Binds the results of a node; returns the only one, or None."""
        kind, outputs = node.kind(), [v.debugName() for v in node.outputs()]
        values, paths = self._values, self._paths
        if kind == "prim::Constant":
            values[outputs[0]] = _constant(node)
            return None
        if kind == "prim::GetAttr":
            owner, name = next(iter(node.inputs())).debugName(), node.s("name")
            values[outputs[0]] = self._attribute(values[owner], name)
            paths[outputs[0]] = f"{paths[owner]}.{name}" if owner in paths else name
            return None
        builder.where = module_path(node) or weight_owner(node, paths) or kind.split("::")[1]
        result = self._computed(builder, node, [values[v.debugName()] for v in node.inputs()])
        results = _results(node, result)
        values.update(zip(outputs, results, strict=True))
        return results[0] if len(results) == 1 else None

    def _computed(self, builder: QdqBuilder, node: Any, arguments: list[Any]) -> Any:
        kind = node.kind()
        converter = find_converter(kind)
        try:
            if is_computable(kind) and is_known(arguments):
                return compute(node, arguments)
            if converter is None:
                raise ModelImportError(
                    f"{kind} at {builder.where} needs sizes or numbers that are known at import; what depends on the "
                    "batch is known with batch='static' (--batch static)"
                )
            if not (kind in TAKES_KNOWN or kind.startswith("prim::")):
                arguments = as_arguments(arguments)
            return converter(builder, *arguments)
        except UnsupportedOpError:
            raise
        except ModelImportError as error:
            raise ModelImportError(f"{error} ({kind}, {source_line(node)})") from error
        except MemoryError:
            raise
        except Exception as error:  # TVM's and PyTorch's operators raise any kind of error
            raise ModelImportError(
                f"{kind} at {builder.where} ({source_line(node)}) cannot be imported: {gist(error)}"
            ) from error

    def _attribute(self, owner: Any, name: str) -> Any:
        """Returns an attribute of a module; for a tensor, a copy, always the same one."""
        value = getattr(owner, name)
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            return value
        return self._tensors.setdefault(id(value), (value, value.detach().clone()))[1]  # held: ids are reused

    def _record_layer(self, builder: QdqBuilder, node: Any, made: Any) -> None:
        """Records the layer of a node that quantizes its result."""
        if not isinstance(made, QTensor) or made.expr not in builder.quantizes:
            return
        value = next(iter(node.outputs())).debugName()
        count = self._names[builder.where]
        self._names[builder.where] += 1
        name = f"{builder.where}_{count}" if count else builder.where
        shape = tuple(d if isinstance(d, int) else 0 for d in shape_of(made))
        self.layers.append((Layer(name, node.kind(), value, shape, made.q), made))


def _shapes(inputs: Sequence[torch.Tensor], batch: str) -> list[list[Any]]:
    """Returns the shape of every input; with a dynamic batch, dimension 0 is n.

    Inputs with another size in dimension 0 get a batch of their own, n_1 and so on; size 1 among larger ones is static.
    """
    sizes = [x.shape[0] for x in inputs if x.ndim]
    symbols: dict[int, Any] = {}
    for size in sizes:
        if batch == "dynamic" and size not in symbols and (size != 1 or set(sizes) == {1}):
            symbols[size] = tirx.Var("n" if not symbols else f"n_{len(symbols)}", "int64")
    return [[symbols.get(x.shape[0], x.shape[0]), *x.shape[1:]] if x.ndim else [] for x in inputs]


def _is_result(value: Any) -> bool:
    return isinstance(value, (QTensor, torch.Tensor)) or isinstance(getattr(value, "ty", None), relax.TensorType)


def _result(builder: QdqBuilder, value: Any) -> Any:
    """Returns a tensor of the result as float; it may be a constant."""
    if isinstance(value, torch.Tensor):
        array = value.dequantize().numpy() if value.is_quantized else value.detach().numpy()
        return constant(array, str(array.dtype))
    return builder.real(value) if isinstance(value, QTensor) else value


def _results(node: Any, result: Any) -> tuple[Any, ...]:
    """Returns the values of a node's outputs."""
    if len(list(node.outputs())) == 1:
        return (result[0] if node.kind().endswith("Unpack") else result,)
    return tuple(result)


def _constant(node: Any) -> Any:
    return next(iter(node.outputs())).toIValue() if "value" in node.attributeNames() else None


__all__: Sequence[str] = [
    "QTensor",
    "from_torch",
    "import_layers",
]
