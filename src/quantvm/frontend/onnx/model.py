"""ONNX files in QDQ form -> Relax in QDQ form; knows no torch.

First constants are folded and sizes made explicit in the ONNX graph. Then TVM's importer reads it, with our own
converters for the operators from which TVM's would make TIR functions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from quantvm.errors import ModelImportError, UnsupportedOpError, first_line, listed
from quantvm.frontend.program_inputs import bind_batch, examples_in_order, importing, with_interface
from quantvm.frontend.qdq_form import qdq_form_with_tensors
from quantvm.qdq import attributes
from quantvm.storage.regular_files import checked_path

from .check import check_onnx, check_sizes
from .constant_folding import fold_constants, inline_functions
from .file import read_onnx, with_external_data
from .graph import Constants, attribute, node_name, set_attribute, subgraphs
from .importer import import_graph
from .operators import MICROSOFT
from .shapes import Dims, fix_inputs, inferred_shapes, make_explicit

ENGINE = "onnx"
_OPERATOR_FORMAT = ("QLinear", "ConvInteger", "MatMulInteger", "QAttention", "QGemm", "QEmbed")


def from_onnx(
    model_or_path: Any, *, example_inputs: Sequence[Any] | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Returns the model in Relax QDQ form, with the file's own shapes (NCHW) and engine onnx.

    Args:
        model_or_path: the path of an `.onnx` file, or an `onnx.ModelProto`.
        example_inputs: give the sizes of a static batch, and of images whose height and width are dynamic in the file;
            their other sizes are checked against the model's.
        batch: dynamic: dimension 0 of an input is symbolic if it is in the file; static: it is the example's.

    Raises:
        UnsupportedOpError: operators that TVM's importer lacks, or the operator-oriented format, all in one message.
        ModelImportError: no such file, not an ONNX file, not quantized, or bad parameters.
    """
    with importing(model_or_path, batch):
        module, _ = from_onnx_with_tensors(load_onnx(model_or_path), example_inputs, batch)
        return module


def from_onnx_with_tensors(
    model: Any, example_inputs: Sequence[Any] | None, batch: str
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Returns what `from_onnx` does, and for each variable that a quantize makes, the tensor's name in the file.

    There are no names if one of these tensors is not in the file's main graph.
    """
    _check_operators(model.graph)
    check_onnx(model)
    names = _input_names(model.graph)
    if example_inputs is not None:
        example_inputs = examples_in_order(names, example_inputs)
    prepared, shapes = _prepared(model, example_inputs, batch)
    check_sizes(shapes, prepared.graph)
    _check_parameters(prepared.graph)
    quantized = [node.output[0] for node in prepared.graph.node if node.op_type == "QuantizeLinear"]
    if not set(quantized) <= {name for node in model.graph.node for name in node.output}:
        quantized = []
    imported = import_graph(prepared, shapes)
    module, tensors = qdq_form_with_tensors(imported, _contraction_names(prepared.graph), quantized)
    module = with_interface(module, names, None)
    return bind_batch(module, example_inputs, batch).with_attr(attributes.ENGINE, ENGINE), tensors


def _input_names(graph: Any) -> list[str]:
    stored = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in stored]


def _prepared(model: Any, example_inputs: Sequence[Any] | None, batch: str) -> tuple[Any, dict[str, Dims]]:
    """Returns the model with folded constants, explicit sizes and names for all nodes, and the shapes of its values."""
    import onnx

    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    for graph in subgraphs(prepared.graph):
        for node in graph.node:
            if node.domain == MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.domain = ""  # ONNX Runtime's quantizer writes the same operators so for old opsets
    fix_inputs(prepared, example_inputs, batch)
    try:
        prepared, shapes = _explicit(fold_constants(prepared))
        written = inline_functions(prepared)
        if written is not prepared:
            prepared, shapes = _explicit(fold_constants(written))
    except Exception as error:  # onnx-ir, onnxscript, onnx and NumPy have no common base class
        raise ModelImportError(f"the model's constants cannot be computed: {_innermost(error)}") from error
    _name_nodes(prepared.graph)
    _tensors_of_constants(prepared.graph)
    return prepared, shapes


def _explicit(model: Any) -> tuple[Any, dict[str, Dims]]:
    """Returns a model with computed sizes made explicit, and the shapes of its values."""
    shapes = inferred_shapes(model)
    while make_explicit(model.graph, shapes):
        model = fold_constants(model)
        shapes = inferred_shapes(model)
    return model, shapes


def _tensors_of_constants(graph: Any) -> None:
    """Turns the numbers of Constant nodes that are outputs of the model into tensors."""
    from onnx import numpy_helper

    for node in graph.node:
        for given in node.attribute if node.op_type == "Constant" else ():
            kind = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32,
                    "value_floats": np.float32}.get(given.name)  # fmt: skip
            if kind is not None:
                value = np.asarray(attribute(node, given.name, None), kind)
                set_attribute(node, given.name, None)
                set_attribute(node, "value", numpy_helper.from_array(value))


def _innermost(error: BaseException) -> str:
    """Returns the messages of an error and of its causes, each in one line."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(first_line(cause))
        cause = cause.__cause__
    return ": ".join(dict.fromkeys(lines))


def _name_nodes(graph: Any) -> None:
    """Gives each node a unique name."""
    taken: set[str] = set()
    for node in graph.node:
        name = node_name(node)
        count = 1
        unique = name
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        node.name = unique
        taken.add(unique)


def load_onnx(model_or_path: Any) -> Any:
    """Returns the model of an `.onnx` file.

    Raises:
        ModelImportError: no such file, or not an ONNX file.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (folds constants)
    except ImportError as error:
        raise ModelImportError(
            "ONNX models need the packages onnx and onnxscript: pip install 'quantvm[onnx]'"
        ) from error
    if isinstance(model_or_path, onnx.ModelProto):
        return with_external_data(model_or_path, Path())
    if not isinstance(model_or_path, (str, Path)):
        raise ModelImportError(f"expected an ONNX model or the path of one, got {type(model_or_path).__name__}")
    return read_onnx(checked_path(model_or_path, ModelImportError))


def _check_operators(graph: Any) -> None:
    kinds = Counter(node.op_type for node in graph.node)
    fused = sorted(k for k in kinds if k.startswith(_OPERATOR_FORMAT))
    if fused:
        raise UnsupportedOpError(
            f"the model is in ONNX Runtime's operator-oriented format ({', '.join(fused)}); quantize it with "
            "quant_format=QuantFormat.QDQ"
        )
    if "DynamicQuantizeLinear" in kinds:
        raise ModelImportError(
            "the model is dynamically quantized (DynamicQuantizeLinear); use quantize_static with "
            "quant_format=QuantFormat.QDQ and calibration data"
        )
    if "QuantizeLinear" not in kinds and "DequantizeLinear" not in kinds:
        raise ModelImportError(
            "no QuantizeLinear or DequantizeLinear found: this is a float model; quantize it with "
            "onnxruntime.quantization.quantize_static(quant_format=QuantFormat.QDQ)"
        )


def _check_parameters(graph: Any) -> None:
    """Raises one error for all invalid scales and zero points."""
    constants = Constants(graph)
    problems = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.name
        if not 2 <= len(node.input) <= 3 or len(node.output) != 1:
            problems.append(f"{name}: {len(node.input)} inputs and {len(node.output)} outputs, expected 2 or 3, and 1")
            continue
        scale = constants.get(node.input[1])
        if scale is None:
            problems.append(f"{name}: the scale is computed at run time")
            continue
        bad = ~(np.isfinite(scale) & (scale > 0))
        if bad.any():
            problems.append(f"{name}: scale {scale[bad].ravel()[0]}, expected a positive, finite float32")
        zero_point = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero_point is not None and zero_point.dtype not in (np.uint8, np.int8, np.int32):
            problems.append(f"{name}: zero points of {zero_point.dtype}, expected int8 or uint8")
    if problems:
        raise ModelImportError(f"bad quantization parameters: {listed(problems)}")


def _contraction_names(graph: Any) -> list[str]:
    """Returns the module path of each convolution and matrix product, from the names that torch's exporters give."""
    nodes = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return [_layer_name(node) for node in nodes]


def _layer_name(node: Any) -> str:
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [s for s in re.findall(r"'([^']*)'", entry.value) if s]
            if len(scopes) > 1:
                return scopes[-2]
    parts = [part for part in (node.name or node.output[0]).split("/") if part]
    if len(parts) > 1 and parts[-1].split("_")[0] == node.op_type:
        parts = parts[:-1]
    kept = [p for p, following in zip(parts, [*parts[1:], ""], strict=True) if not following.startswith(f"{p}.")]
    return ".".join(kept) or str(node.op_type).lower()


__all__ = ["ENGINE", "from_onnx", "from_onnx_with_tensors", "load_onnx"]
