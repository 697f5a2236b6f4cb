"""Folds constants in an ONNX graph before it is imported.

Weights stay integers: a float constant that QuantizeLinear reads becomes an int8 or uint8 constant, and an operator
that moves a dequantized constant moves its integers instead. Dequantized constants become float only if no convolution
or matrix product reads them as a weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import Constants, attribute, consumers, set_attribute, subgraphs
from .operators import NAMED, SWEPT, opset_of, version_of

_FOLDED_INPUT = 1 << 24
"""Largest number of elements of a constant that folding reads."""
_FOLDED_OUTPUT = 1 << 22
_FLOAT_CONSTANT = 1 << 20
"""Largest number of elements of an integer constant that becomes float if no contraction reads it as a weight."""
_MOVES = frozenset(("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Operators with integer weights -> the inputs that may be the weight."""
_STORED = ("int8", "uint8")


def fold_constants(model: Any) -> Any:
    """Returns the model with results of constants folded into initializers, and without nodes that are then unused.

    Values keep their names. An `If` with a constant condition is replaced by its branch; functions are inlined.

    Args:
        model: an `onnx.ModelProto`; it is not modified.

    Raises:
        Exception: any error of onnx's own operators on invalid constants.
    """
    folded = _run_folding_passes(model)
    while _fold_quantization(folded.graph):
        folded = _run_folding_passes(folded)
    return folded


def inline_functions(model: Any) -> Any:
    """Returns the model with unsupported operators expanded, if ONNX defines them as functions of others.

    Range is not expanded: ONNX defines it by a loop, and a Range that can be imported is folded.
    """
    from onnx import helper, inliner, shape_inference

    while wanted := _functions(model):
        model = shape_inference.infer_shapes(model)
        known = {value.name for value in model.graph.value_info}
        model.graph.value_info.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in model.graph.initializer if tensor.name not in known
        )  # fmt: skip
        model = inliner.inline_selected_functions(model, wanted, exclude=False, inline_schema_functions=True)
    return model


def _functions(model: Any) -> list[tuple[str, str]]:
    """Returns the operators to expand, and writes default attributes explicitly into their nodes."""
    from onnx import defs

    opset = opset_of(model)
    found = []
    for node in (node for part in subgraphs(model.graph) for node in part.node):
        op = node.op_type
        if node.domain not in NAMED or op in SWEPT or op == "Range" or version_of(op, opset) is None:
            continue
        schema: Any = defs.get_schema(op, opset, "")  # onnx's type stubs lack has_function
        if not schema.has_function and not schema.has_context_dependent_function:
            continue
        given = {held.name for held in node.attribute}
        node.attribute.extend(
            held.default_value
            for name, held in schema.attributes.items()
            if name not in given and held.default_value.type
        )
        found.append(("", str(op)))
    return sorted(set(found))


def _run_folding_passes(model: Any) -> Any:
    """Returns the model after onnxscript's constant folding and onnx-ir's removal of unused nodes."""
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir

    graph = ir.serde.deserialize_model(model)
    if graph.functions:
        common.InlinePass()(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.LiftSubgraphInitializersToMainGraphPass()(graph)
    fold_constants_ir(
        graph, onnx_shape_inference=True, input_size_limit=_FOLDED_INPUT, output_size_limit=_FOLDED_OUTPUT,
        should_fold=lambda node: False if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None,
    )  # fmt: skip
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.RemoveUnusedNodesPass()(graph)
    return ir.serde.serialize_model(graph)


def _fold_quantization(graph: Any) -> bool:
    """Folds quantizes and dequantizes of constants, and moves of dequantized ones; returns whether there were any."""
    constants, made = Constants(graph), {node.output[0]: node for node in graph.node if node.output}
    read = consumers(graph)
    outputs = {output.name for output in graph.output}
    gone, changed = [], False
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            value = _quantized(node, constants)
            if value is not None and node.output[0] not in outputs:
                constants.add(node.output[0], value)
                gone.append(node)
        elif node.op_type == "DequantizeLinear":
            value = None if _is_weight(node, read, outputs) else _dequantized(node, constants)
            if value is not None:
                constants.add(node.output[0], value)
                gone.append(node)
        elif node.op_type in _MOVES and node.input[0] in made:
            changed |= _moved_inside(node, made[node.input[0]], constants)
    for node in gone:
        graph.node.remove(node)
    return changed or bool(gone)


def _is_weight(node: Any, read: dict[str, list[Any]], outputs: set[str]) -> bool:
    """Returns whether a dequantized constant must keep its integers."""
    name = node.output[0]
    readers = read.get(name, [])
    if name in outputs or any(reader.op_type in ("If", "Loop", "Scan", "Gather", *_MOVES) for reader in readers):
        return True
    return any(name in [reader.input[i] for i in _WEIGHTS.get(reader.op_type, ()) if i < len(reader.input)]
               for reader in readers)  # fmt: skip


def _along(parameter: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Returns per-channel parameters, reshaped to broadcast along their axis."""
    if parameter.size == 1:
        return parameter.reshape(())
    sizes = [1] * rank
    sizes[axis % rank] = -1
    return parameter.reshape(sizes)


def _parameters(node: Any, constants: Constants, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns scale and zero point, shaped to broadcast with x; None unless they are constants that fit x."""
    scale = constants.get(node.input[1])
    has_zero_point = len(node.input) > 2 and bool(node.input[2])
    zero_point = constants.get(node.input[2]) if has_zero_point else None
    if scale is None or (has_zero_point and zero_point is None) or attribute(node, "block_size", 0):
        return None
    axis = attribute(node, "axis", 1)
    if x.ndim == 1 and axis == 1:
        axis = 0
    for parameter in (scale, zero_point):
        if parameter is not None and parameter.size != 1 and (
            parameter.ndim != 1 or not -x.ndim <= axis < x.ndim or parameter.size != x.shape[axis]
        ):  # fmt: skip
            return None
    found = _along(scale, axis, x.ndim)
    return found, None if zero_point is None else _along(zero_point, axis, x.ndim)


def _quantized(node: Any, constants: Constants) -> np.ndarray | None:
    """Returns saturate(round_half_even(x / scale) + zero_point) of a float32 constant, as ONNX defines it."""
    x = constants.get(node.input[0])
    if x is None or x.dtype != np.float32:
        return None
    found = _parameters(node, constants, x)
    if found is None or found[0].dtype != np.float32:
        return None
    scale, zero_point = found
    dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    kind = attribute(node, "output_dtype", 0)
    if dtype.name not in _STORED or (kind and zero_point is None):
        return None
    rounded = np.rint(x / scale).astype(np.float64) + (0 if zero_point is None else zero_point.astype(np.float64))
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(rounded, limits.min, limits.max)).astype(dtype)


def _dequantized(node: Any, constants: Constants) -> np.ndarray | None:
    """Returns fl(scale * (q - zero_point)) of an integer constant."""
    q = constants.get(node.input[0])
    if q is None or q.dtype.name not in (*_STORED, "int32") or q.size > _FLOAT_CONSTANT:
        return None
    found = _parameters(node, constants, q)
    if found is None or found[0].dtype != np.float32:
        return None
    scale, zero_point = found
    centred = q.astype(np.int64) - (0 if zero_point is None else zero_point.astype(np.int64))
    return np.asarray(np.multiply(centred.astype(np.float32), scale, dtype=np.float32))


def _moved_inside(node: Any, dequantize: Any, constants: Constants) -> bool:
    """Replaces a move of a dequantized weight by a dequantize of moved integers, if its channels stay one dimension."""
    from onnx import helper

    q = constants.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
    if q is None or q.dtype.name not in _STORED:
        return False
    moved = _move(node, q, constants)
    scale = constants.get(dequantize.input[1])
    if moved is None or scale is None:
        return False
    axis = None
    if scale.size != 1:
        found = _parameters(dequantize, constants, q)
        if found is None:
            return False
        channel = np.broadcast_to(_along(np.arange(scale.size), found[0].shape.index(scale.size), q.ndim), q.shape)
        axis = _axis_of(_move(node, channel, constants), scale.size)
        if axis is None:
            return False
    name = constants.add_new(f"{node.output[0]}_stored", moved)
    read = [name, *dequantize.input[1:]]
    made = helper.make_node("DequantizeLinear", read, list(node.output), node.name, domain=dequantize.domain)
    set_attribute(made, "axis", axis)
    made.metadata_props.extend(node.metadata_props)
    node.CopyFrom(made)
    return True


def _move(node: Any, x: np.ndarray, constants: Constants) -> np.ndarray | None:
    """Returns the result of a move of a constant, or None if it also depends on something not constant."""
    if node.op_type == "Identity":
        return x
    if node.op_type == "Transpose":
        return x.transpose(attribute(node, "perm", None))
    if node.op_type == "Flatten":
        axis = attribute(node, "axis", 1)
        axis = axis + x.ndim if axis < 0 else axis
        return x.reshape(int(np.prod(x.shape[:axis])), -1)
    if node.op_type == "Reshape":
        shape = constants.get(node.input[1])
        if shape is None:
            return None
        sizes = [int(d) for d in shape]
        if not attribute(node, "allowzero", 0):
            sizes = [x.shape[i] if d == 0 else d for i, d in enumerate(sizes)]
        return x.reshape(sizes)
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        given = constants.get(node.input[1])
        if given is None:
            return None
        axes = [int(a) for a in given.ravel()]
    if node.op_type == "Squeeze":
        return x.squeeze(None if axes is None else tuple(axes))
    return None if axes is None else np.expand_dims(x, tuple(axes))


def _axis_of(channel: np.ndarray | None, count: int) -> int | None:
    """Returns the dimension along which the moved channel numbers are 0, 1, ..., or None."""
    if channel is None:
        return None
    for axis in range(channel.ndim):
        if channel.shape[axis] == count and (channel == _along(np.arange(count), axis, channel.ndim)).all():
            return axis
    return None


__all__ = ["fold_constants", "inline_functions"]
