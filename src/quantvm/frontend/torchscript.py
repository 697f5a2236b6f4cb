"""TorchScript -> Relax in QDQ form: walks a traced graph and calls the converter of each node.

Quantization parameters and dtypes are propagated forward: TorchScript's value types say no more than `Tensor`.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax, tirx

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.numerics import ENGINES
from quantvm.torch_compat import quiet

from . import contractions, elementwise, pooling, shapes  # noqa: F401  (registers the converters)
from .aliases import stale_reads
from .builder import QdqBuilder, QTensor, constant, shape_of
from .layers import Layer, LayeredProgram
from .program_inputs import ENGINE_ATTR
from .registry import find_converter, supported_ops
from .torchscript_layers import TorchScriptSource


def from_torch(model: Any, example_inputs: Any, *, engine: str | None = None, batch: str = "dynamic") -> tvm.IRModule:
    """Returns the model in Relax QDQ form, with PyTorch's logical shapes (NCHW).

    Args:
        model: an eager-quantized `nn.Module`, a traced module, or the path of a saved TorchScript file.
        example_inputs: one float32 tensor or a sequence of them; their shapes are the function's.
        engine: PyTorch engine that the model was quantized for; by default what the model says
            (`quantvm_engine`), else `torch.backends.quantized.engine`.
        batch: dynamic: dimension 0 of every input is symbolic; static: it is the example's.

    Raises:
        UnsupportedOpError: operators without a converter, all of them in one message.
        ModelImportError: no quantized operator, quantization-aware training not converted, or bad parameters.
    """
    script, inputs, engine = _checked(model, example_inputs, engine)
    graph = script.inlined_graph
    conversion = _Conversion(script, graph, inputs, batch)
    return conversion.go(lambda results: results).with_attr(ENGINE_ATTR, engine)


def import_layers(model: Any, example_inputs: Any, *, engine: str | None = None) -> LayeredProgram:
    """Returns the model with every quantized tensor in sight, for batches of the example's size.

    Args and errors: as `from_torch`.
    """
    script, inputs, engine = _checked(model, example_inputs, engine)
    conversion = _Conversion(script, script.inlined_graph, inputs, "static")
    n_outputs = 0

    def with_layers(results: list[Any]) -> list[Any]:
        nonlocal n_outputs
        n_outputs = len(results)
        return [*results, *(tensor.expr for _, tensor in conversion.layers)]

    chained = conversion.go(with_layers).with_attr(ENGINE_ATTR, engine)
    layers = tuple(layer for layer, _ in conversion.layers)
    return LayeredProgram(TorchScriptSource(script), layers, chained, n_outputs, engine, inputs)


def _checked(
    model: Any, example_inputs: Any, engine: str | None
) -> tuple[torch.jit.ScriptModule, tuple[torch.Tensor, ...], str]:
    """Returns the program as TorchScript, whose operators can all be imported, its inputs, and its engine."""
    inputs = tuple(example_inputs) if isinstance(example_inputs, (list, tuple)) else (example_inputs,)
    inputs = tuple(torch.as_tensor(x) for x in inputs)
    engine = engine or getattr(model, "quantvm_engine", None) or torch.backends.quantized.engine
    if engine not in ENGINES:
        raise ModelImportError(f"unknown quantization engine {engine!r}, expected one of {', '.join(ENGINES)}")
    script = _script_module(model, inputs)
    _check_ops(script.inlined_graph)
    return script, inputs, engine


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Returns the program of a TorchScript file.

    Raises:
        ModelImportError: no such file, or not one that this PyTorch can load.
    """
    if not path.is_file():
        raise ModelImportError(f"no such file: {path}")
    try:
        with quiet():
            return torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelImportError(f"{path} is not a TorchScript file that this PyTorch can load: {reason}") from error


def _script_module(model: Any, inputs: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with quiet():
        if isinstance(model, (str, Path)):
            return load_script(Path(model))
        if isinstance(model, torch.jit.ScriptModule):
            return model
        if not isinstance(model, torch.nn.Module):
            raise ModelImportError(f"expected an nn.Module, a traced module or a path, got {type(model).__name__}")
        if model.training:
            raise ModelImportError("the model is in training mode; call model.eval() first")
        # PyTorch's own quantized modules read their scale as a number, which is meant to be a constant
        scale_readers = r"torch\.(ao\.nn\.quantized|_ops)"
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=scale_readers)
        with torch.no_grad():
            return torch.jit.trace(model, inputs, check_trace=False)


def _check_ops(graph: Any) -> None:
    """Raises one error for all that cannot be imported."""
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
    missing = [k for k in kinds if k not in ("prim::Constant", "prim::GetAttr") and find_converter(k) is None]
    if missing:
        rows = []
        for kind in missing:
            first = next(node for node in nodes if node.kind() == kind)
            rows.append(f"{kind} x{kinds[kind]} (first: {_where(first) or 'graph'}, {_source(first)})")
        raise UnsupportedOpError(
            f"{len(missing)} unsupported ops: {'; '.join(rows)}. Supported: `quantvm list ops` "
            f"({len(supported_ops())} ops). To add one: quantvm.frontend.registry"
        )
    for write, read in stale_reads(graph):
        raise ModelImportError(
            f"{write.kind()} at {_where(write) or 'graph'} ({_source(write)}) writes in place to a tensor that "
            f"{read.kind()} at {_where(read) or 'graph'} ({_source(read)}) reads under another name; "
            f"use {write.kind().removesuffix('_')}, which returns a new tensor"
        )


def _where(node: Any) -> str:
    """Returns the module path of a node, e.g. layer1.0.conv1."""
    scope = node.scopeName()
    return scope.rsplit("/", 1)[-1].removeprefix("__module.").removeprefix("__module") if scope else ""


def _owner(node: Any, paths: dict[str, str]) -> str:
    """Returns the path of the module whose packed weight a node reads: a graph from a file has no scopes."""
    read = (paths.get(value.debugName(), "") for value in node.inputs())
    return next((path.split("._packed_params")[0] for path in read if path.endswith("._packed_params")), "")


def _source(node: Any) -> str:
    for line in node.sourceRange().splitlines():
        if ".py" in line:
            return line.strip().split("/")[-1].rstrip(":")
    return "no source line"


class _Conversion:
    """One walk over a graph.

    Args:
        script: whose graph it is.
        graph: inlined.
        inputs: examples.
        batch: dynamic or static.
    """

    def __init__(
        self, script: torch.jit.ScriptModule, graph: Any, inputs: tuple[torch.Tensor, ...], batch: str
    ) -> None:
        self._graph = graph
        self._values: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self.layers: list[tuple[Layer, QTensor]] = []
        n = tirx.Var("n", "int64")
        names = [v.debugName() for v in graph.inputs()]
        self._values[names[0]] = script
        if len(names) - 1 != len(inputs):
            raise ModelImportError(f"the model takes {len(names) - 1} inputs, got {len(inputs)} example inputs")
        self._params = []
        for index, x in enumerate(inputs):
            if x.dtype != torch.float32:
                raise ModelImportError(f"example input {index} has dtype {x.dtype}, expected float32")
            shape = [n, *x.shape[1:]] if batch == "dynamic" else list(x.shape)
            var = relax.Var(f"input_{index}" if len(inputs) > 1 else "input", relax.TensorType(shape, "float32"))
            self._params.append(var)
            self._values[names[index + 1]] = var

    def go(self, results_of: Callable[[list[Any]], list[Any]]) -> tvm.IRModule:
        """Returns the module; `results_of` maps the program's outputs to the function's."""
        block_builder = relax.BlockBuilder()
        with block_builder.function("main", self._params):
            with block_builder.dataflow():
                builder = QdqBuilder(block_builder)
                for node in self._graph.nodes():
                    made = _convert_node(builder, node, self._values, self._paths)
                    self._take_layer(builder, node, made)
                flat = [o for v in self._graph.outputs() for o in _outputs(builder, self._values[v.debugName()])]
                flat = results_of(flat)
                result = block_builder.emit_output(flat[0] if len(flat) == 1 else relax.Tuple(flat))
            block_builder.emit_func_output(result)
        return block_builder.get()

    def _take_layer(self, builder: QdqBuilder, node: Any, made: Any) -> None:
        """Notes a node whose result is quantized by it."""
        if not isinstance(made, QTensor) or made.expr not in builder.quantizes:
            return
        value = next(iter(node.outputs())).debugName()
        count = self._names[builder.where]
        self._names[builder.where] += 1
        name = f"{builder.where}_{count}" if count else builder.where
        shape = tuple(d if isinstance(d, int) else 0 for d in shape_of(made))
        self.layers.append((Layer(name, node.kind(), value, shape, made.q), made))


def _outputs(builder: QdqBuilder, value: Any) -> list[Any]:
    """Returns the float tensors of a result, nested lists and tuples flattened."""
    builder.where = "output"
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _outputs(builder, item)]
    return [builder.real(value)]


def _convert_node(builder: QdqBuilder, node: Any, values: dict[str, Any], paths: dict[str, str]) -> Any:
    """Binds the results of a node; returns the only one, or None."""
    kind, outputs = node.kind(), [v.debugName() for v in node.outputs()]
    if kind == "prim::Constant":
        values[outputs[0]] = _constant(node)
        return None
    if kind == "prim::GetAttr":
        owner, name = next(iter(node.inputs())).debugName(), node.s("name")
        values[outputs[0]] = _attribute(values[owner], name)
        paths[outputs[0]] = f"{paths[owner]}.{name}" if owner in paths else name
        return None
    converter = find_converter(kind)
    assert converter is not None  # _check_ops saw every node
    builder.where = _where(node) or _owner(node, paths) or kind.split("::")[1]
    arguments = [values[v.debugName()] for v in node.inputs()]
    try:
        result = converter(builder, *arguments)
    except (tvm.error.InternalError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ModelImportError(f"{kind} at {builder.where} ({_source(node)}) cannot be imported: {reason}") from error
    results = result if isinstance(result, tuple) else (result,)
    values.update(zip(outputs, results, strict=True))
    return results[0] if len(results) == 1 else None


def _constant(node: Any) -> Any:
    if "value" not in node.attributeNames():
        return None
    value = next(iter(node.outputs())).toIValue()
    if isinstance(value, torch.Tensor) and not value.is_quantized:
        return value.item() if value.ndim == 0 else constant(value.numpy(), str(value.numpy().dtype))
    return value


def _attribute(owner: Any, name: str) -> Any:
    value = getattr(owner, name)
    if isinstance(value, torch.Tensor) and not value.is_quantized:
        if value.ndim == 0:
            return value.item()
        return constant(value.detach().numpy(), str(value.detach().numpy().dtype))
    return value


__all__: Sequence[str] = [
    "ENGINE_ATTR",
    "QTensor",
    "from_torch",
    "import_layers",
]
