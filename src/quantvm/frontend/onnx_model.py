"""ONNX files in QDQ form -> Relax in QDQ form, through TVM's own importer; knows no torch."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from quantvm.errors import ModelImportError, UnsupportedOpError

from .normalize import normalize_with_tensors
from .program_inputs import ENGINE_ATTR, bind_batch

ENGINE = "onnx"
_OPERATOR_FORMAT = ("QLinear", "ConvInteger", "MatMulInteger", "QAttention", "QGemm", "QEmbed")


def from_onnx(
    model_or_path: Any, *, example_inputs: Sequence[Any] | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Returns the model in Relax QDQ form, with the file's own shapes (NCHW) and engine onnx.

    Args:
        model_or_path: the path of an `.onnx` file, or an `onnx.ModelProto`.
        example_inputs: their sizes are those of a static batch; checked against the model's.
        batch: dynamic: dimension 0 of an input is symbolic where it is so in the file; static: it is the example's.

    Raises:
        UnsupportedOpError: operators that TVM's importer lacks, or the operator-oriented format, all in one message.
        ModelImportError: no such file, not an ONNX file, not quantized, or bad parameters.
    """
    module, _ = from_onnx_with_tensors(load_onnx(model_or_path), example_inputs, batch)
    return module


def from_onnx_with_tensors(
    model: Any, example_inputs: Sequence[Any] | None, batch: str
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Returns what `from_onnx` does, and of each variable that a quantize made the tensor's name in the file."""
    _check_operators(model.graph)
    _check_parameters(model.graph)
    quantized = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    module, tensors = normalize_with_tensors(_with_tvm(model), _contraction_names(model.graph), quantized)
    return bind_batch(module, example_inputs, batch).with_attr(ENGINE_ATTR, ENGINE), tensors


def load_onnx(model_or_path: Any) -> Any:
    """Returns the model of an `.onnx` file.

    Raises:
        ModelImportError: no such file, or not an ONNX file.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelImportError("ONNX models need the package onnx: pip install 'quantvm[onnx]'") from error
    if isinstance(model_or_path, onnx.ModelProto):
        return model_or_path
    if not isinstance(model_or_path, (str, Path)):
        raise ModelImportError(f"expected an ONNX model or the path of one, got {type(model_or_path).__name__}")
    path = Path(model_or_path)
    if not path.is_file():
        raise ModelImportError(f"no such file: {path}")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's, onnx's and Python's own errors have no common base
        raise ModelImportError(f"{path} is truncated or no ONNX file: {str(error).splitlines()[0]}") from error
    if not model.graph.node or not model.opset_import:
        raise ModelImportError(f"{path} is truncated or no ONNX file: it holds no graph")
    return model


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


def _constants(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items() if np.prod(tensor.dims) < 1 << 20}


def _check_parameters(graph: Any) -> None:
    """Raises one error for all scales and zero points that make no sense."""
    constants = _constants(graph)
    problems = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants.get(node.input[1])
        name = node.name or node.output[0]
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
        shown = "; ".join(problems[:8]) + (f"; {len(problems)} in all" if len(problems) > 8 else "")
        raise ModelImportError(f"bad quantization parameters: {shown}")


def _with_tvm(model: Any) -> tvm.IRModule:
    from tvm.relax.frontend.onnx import from_onnx as tvm_from_onnx

    try:
        # TVM prints the inputs of a node that it cannot convert, and stdout is for results
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that TVM changes, and of what onnx's checker finds
            return tvm_from_onnx(model, keep_params_in_input=False)
    except tvm.error.OpNotImplemented as error:
        names = str(error).split(":")[-1].strip()
        known = {op: _first(model.graph, op) for op in re.split(r",\s*", names)}
        rows = "; ".join(f"{op} x{count} (first: {first})" for op, (count, first) in sorted(known.items()))
        raise UnsupportedOpError(f"{len(known)} operators that TVM's ONNX importer lacks: {rows}") from error
    except Exception as error:  # its converters raise whatever Python raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelImportError(f"TVM's ONNX importer cannot read the model: {reason}") from error


def _first(graph: Any, op: str) -> tuple[int, str]:
    nodes = [node for node in graph.node if node.op_type == op]
    return len(nodes), (nodes[0].name or nodes[0].output[0]) if nodes else "not in the main graph"


def _contraction_names(graph: Any) -> list[str]:
    """Returns the module path of each convolution and matrix product, from names that exporters of torch give."""
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
