"""Checks that an ONNX file is a valid model, before it is imported.

onnx's own checker and strict shape inference check the operators. This module checks what they accept but ONNX Runtime
refuses when it loads or runs a file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from quantvm.errors import ModelImportError, UnsupportedOpError, listed
from quantvm.sizes import MOST_ELEMENTS

from .graph import Constants, node_name, subgraphs
from .node_checks import check_nodes
from .operators import NAMED, may_be_of_microsoft
from .shapes import Dims, shape_text, shapes_of, without_negative_sizes

_STORED_BYTES = 1 << 16
"""Larger constants are removed before onnx's shape inference, which does not read them."""


def check_onnx(model: Any) -> None:
    """Raises an error if onnx's checker, its strict shape inference or ONNX Runtime refuse a model.

    The shapes that a file gives for inner values and outputs are ignored, as in ONNX Runtime. Harmless flaws, such as
    an initializer that is stored twice, are accepted.

    Args:
        model: an `onnx.ModelProto`.

    Raises:
        ModelImportError: the message names the nodes, tensors or versions.
        UnsupportedOpError: operators of unknown domains.
    """
    _check_versions(model)
    for graph in subgraphs(model.graph):
        _check_names(graph)
    _check_values(model.graph)
    _check_domains(model)
    _check_tensors(model.graph)
    light = _without_weights(model)
    shapes = _inferred_by_onnx(light)
    check_sizes(shapes, light.graph)
    check_nodes(light.graph, shapes, Constants(model.graph))


def _check_versions(model: Any) -> None:
    import onnx

    if not 0 < model.ir_version <= onnx.IR_VERSION:
        raise ModelImportError(
            f"the model has IR version {model.ir_version}, and onnx {onnx.__version__} knows 1 to {onnx.IR_VERSION}; "
            "install a newer onnx, or convert the model"
        )
    found: dict[str, set[int]] = {}
    for opset in model.opset_import:
        found.setdefault("" if opset.domain in NAMED else opset.domain, set()).add(int(opset.version))
    several = sorted(domain for domain, versions in found.items() if len(versions) > 1)
    if several:
        raise ModelImportError(f"the model imports several versions of the operator sets {several}")
    newest = onnx.defs.onnx_opset_version()
    for version in found.get("", set()):
        if not 0 < version <= newest:
            raise ModelImportError(
                f"the model is of opset {version}, and onnx {onnx.__version__} knows 1 to {newest}; install a newer "
                "onnx, or convert the model by onnx.version_converter"
            )


def check_sizes(shapes: dict[str, Dims], graph: Any) -> None:
    """Raises ModelImportError if a tensor would have a negative size, or more elements than code can address.

    Args:
        shapes: shapes of the graph's values.
        graph: a graph whose nodes have names.
    """
    makers = {out: f"{node.op_type} at {node.name}" for node in graph.node for out in node.output}
    problems = []
    for name in sorted(shapes, key=lambda name: name in makers):  # inputs and constants first: the rest follows
        shape = shapes[name]
        sizes = [size for size in shape if isinstance(size, int)]
        if min(sizes, default=0) < 0 or math.prod(sizes) > MOST_ELEMENTS:
            what = f"{name} of {makers[name]}" if name in makers else name
            problems.append(f"{what}: {shape_text(shape)}")
    if problems:
        raise ModelImportError(
            f"tensors of negative sizes or of more than {MOST_ELEMENTS} elements: {listed(problems, 3)}"
        )


def _check_values(graph: Any) -> None:
    """Raises an error if a value is read or returned that no node computes, or if an input has no rank."""
    if not graph.output:
        raise ModelImportError("the graph has no outputs")
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in stored and not value.type.tensor_type.HasField("shape"):
            raise ModelImportError(f"the input {value.name} has no shape in the file; write one into it")
    known = {""} | stored | {value.name for value in graph.input}
    for node in graph.node:
        unknown = [name for name in node.input if name not in known]
        if unknown:
            raise ModelImportError(
                f"{node.op_type} at {node_name(node)} reads {', '.join(unknown)}, which nothing before it makes; the "
                "file is damaged, or its nodes are not in order"
            )
        known.update(node.output)
    missing = [output.name for output in graph.output if output.name not in known]
    if missing:
        raise ModelImportError(f"nothing makes the outputs {', '.join(missing)}; the file is damaged")


def _check_names(graph: Any) -> None:
    """Raises an error if two nodes compute the same value or have the same name."""
    names = [node.name for node in graph.node if node.name]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ModelImportError(f"several nodes are called {', '.join(twice[:8])}; a node's name must be its own")
    given = Counter(value.name for value in graph.input)
    made = Counter(out for node in graph.node for out in node.output if out)
    known = set(given) | {tensor.name for tensor in graph.initializer}
    again = [name for name, count in given.items() if count > 1]
    again += [name for name, count in made.items() if count > 1 or name in known]
    if again:
        by = {out: f"{node.op_type} at {node.name}" for node in graph.node for out in node.output}
        shown = ", ".join(f"{name} (by {by[name]})" if name in by else name for name in again[:8])
        raise ModelImportError(f"several nodes or inputs make the same values: {shown}")


def _check_domains(model: Any) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    problems = []
    for graph in subgraphs(model.graph):
        for node in graph.node:
            if node.domain in NAMED or (node.domain, node.op_type) in functions:
                continue
            if not may_be_of_microsoft(node.domain, node.op_type):
                problems.append(f"{node.op_type} of {node.domain} at {node_name(node)}")
    if problems:
        raise UnsupportedOpError(
            f"operators of other domains than ONNX's, which the file does not define as functions: {listed(problems)}"
        )


def _check_tensors(graph: Any) -> None:
    """Raises an error if a tensor's data does not have the size given by its shape and type."""
    problems = [
        f"{tensor.name}: {problem}"
        for part in subgraphs(graph)
        for tensor in part.initializer
        if (problem := _tensor_problem(tensor)) is not None
    ]
    problems += [
        f"{node.op_type} at {node_name(node)}: {problem}"
        for part in subgraphs(graph)
        for node in part.node
        for held in node.attribute
        if held.HasField("t") and (problem := _tensor_problem(held.t)) is not None
    ]
    if problems:
        raise ModelImportError(f"damaged constants: {listed(problems)}")


def _tensor_problem(tensor: Any) -> str | None:
    """Returns what is wrong with a stored tensor, or None."""
    from onnx import TensorProto, helper

    kind = tensor.data_type
    if kind not in TensorProto.DataType.values() or kind == TensorProto.UNDEFINED:
        return f"its data type is {kind}, which ONNX does not have"
    shape = [int(d) for d in tensor.dims]
    if any(d < 0 for d in shape):
        return f"its shape is {tuple(shape)}"
    count = math.prod(shape)
    name = TensorProto.DataType.Name(kind)
    if kind == TensorProto.STRING:
        found, expected, what = len(tensor.string_data), count, "strings"
    elif tensor.HasField("raw_data"):
        bits = _bits(name)
        found, expected, what = len(tensor.raw_data), -(-count * bits // 8), "bytes"
    else:
        field = helper.tensor_dtype_to_field(kind)
        found, expected, what = len(getattr(tensor, field)), _entries(count, name), f"elements in {field}"
    if found != expected:
        return f"it holds {found} {what}, and its shape {tuple(shape)} of {name} needs {expected}"
    return None


def _bits(name: str) -> int:
    """Returns the number of bits of an element in raw data."""
    if name == "BOOL":
        return 8
    digits = re.search(r"\d+", name)
    return {"FLOAT": 32, "DOUBLE": 64}.get(name) or int(digits.group() if digits else 8)


def _entries(count: int, name: str) -> int:
    """Returns how many numbers a typed field holds: two for a complex element, and small elements share a byte."""
    if name.startswith("COMPLEX"):
        return 2 * count
    return -(-count * _bits(name) // 8) if _bits(name) < 8 else count


def _without_weights(model: Any) -> Any:
    """Returns the model with large constants as inputs, all nodes named, and the shapes given in the file removed."""
    import onnx
    from onnx import helper

    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)  # ONNX Runtime treats older versions the same
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        held = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if held and held[0].ByteSize() > _STORED_BYTES:
            stored[node.output[0]] = held[0]
        else:
            graph.node.append(node)
            graph.node[-1].name = node_name(node)
    graph.input.extend(value for value in model.graph.input if value.name not in stored)
    without_negative_sizes(graph)
    for name, tensor in stored.items():
        if tensor.ByteSize() > _STORED_BYTES:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    for output in model.graph.output:
        graph.output.append(output)
        if output.type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")
    return light


def _inferred_by_onnx(light: Any) -> dict[str, Dims]:
    """Returns the shapes that onnx infers.

    Raises:
        ModelImportError: the checker refuses the model, or shapes or types do not match.
    """
    import onnx

    outputs = list(light.graph.output)
    del light.graph.output[:]  # the checker requires outputs to have shapes
    try:
        try:
            onnx.checker.check_model(light)
        except onnx.checker.ValidationError as error:  # ONNX Runtime still runs an early form of operator set 18
            if "GroupNormalization is deprecated" not in str(error):
                raise
        light.graph.output.extend(outputs)
        found = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx's errors have no common base class
        raise ModelImportError(f"onnx refuses the model: {_message(error)}") from error
    return shapes_of(found.graph)


def _message(error: BaseException) -> str:
    return " ".join(line.strip(" =>") for line in str(error).splitlines() if line.strip())


__all__ = ["check_onnx", "check_sizes"]
