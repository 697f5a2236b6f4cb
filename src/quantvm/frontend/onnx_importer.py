"""TVM's ONNX importer with converters of ours, checked against ONNX's own shapes; its errors name the node."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from contextlib import redirect_stdout
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError, gist
from quantvm.tvm_compat import closed_on_error

from .onnx_converters import CONVERTERS, is_function
from .onnx_resize import convert_resize
from .onnx_shapes import Dims

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
           11: "float64"}  # fmt: skip


def import_graph(model: Any, shapes: dict[str, Dims]) -> tvm.IRModule:
    """Returns the model as Relax, as TVM's importer makes it; its constants are bound.

    Args:
        model: an `onnx.ModelProto` whose nodes have names, each its own.
        shapes: what ONNX infers of each value.

    Raises:
        UnsupportedOpError: operators that no converter takes, all in one message; or one that it cannot convert.
        ModelImportError: a node that cannot be imported, or whose result would have another shape than ONNX prescribes.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    importer = _Importer(model.graph, shapes)
    try:
        importer.check_operators(model.graph)
        # TVM prints the inputs of a node that it cannot convert, and stdout is for results
        with closed_on_error(importer.bb), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that TVM changes
            return importer.from_onnx(model.graph, opset)
    except QuantvmError:
        raise
    except Exception as error:  # its converters raise whatever Python raises
        raise ModelImportError(f"{importer.where()}: TVM's ONNX importer cannot convert it: {gist(error)}") from error


class _Importer(ONNXGraphImporter):
    def __init__(self, graph: Any, shapes: dict[str, Dims]) -> None:
        super().__init__({}, "float32", keep_params_in_input=False, sanitize=True)
        self._named = {node.name: node for node in graph.node}
        self._inferred = shapes
        self._node: Any = None

    def check_operators(self, graph: Any) -> None:
        """Raises one UnsupportedOpError for all operators that no converter takes."""
        known = {*_get_convert_map(), *CONVERTERS, "If", "Constant"}
        rows = []
        for op, count in sorted(Counter(node.op_type for node in graph.node).items()):
            if op not in known:
                first = next(node for node in graph.node if node.op_type == op)
                rows.append(f"{op} x{count} (first: {first.name})")
        if rows:
            raise UnsupportedOpError(f"{len(rows)} operators that TVM's ONNX importer lacks: {'; '.join(rows)}")

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Does nothing: `check_operators` knows of our converters, too."""

    def where(self) -> str:
        """Returns what errors call the node under way."""
        if self._node is None:
            return "the graph"
        return f"{self._node.op_type} at {self._node.name}"

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        node = self._named.get(attrs["tvm_custom"]["name"])
        self._node = node if node is not None and node.op_type == op_name else self._node
        converter = CONVERTERS.get(op_name)
        if op_name == "Expand" and not isinstance(inputs[1], GenericConst):
            converter = None  # TVM's takes sizes that are computed at run time
        if op_name in ("Resize", "Upsample") and attrs.get("coordinate_transformation_mode") != b"tf_crop_and_resize":
            converter = convert_resize
        try:
            if converter is None:
                made = super()._convert_operator(op_name, inputs, attrs, opset)
            else:
                made = self.bb.normalize(converter(self.bb, list(inputs), attrs))
        except UnsupportedOpError as error:
            raise UnsupportedOpError(f"{self.where()}: {error}") from error
        if is_function(made):
            raise UnsupportedOpError(f"{self.where()}: it has no kernel; compute it with other operators")
        if node is not None:
            self._check(node, made)
        return made

    def _check(self, node: Any, made: Any) -> None:
        """Raises ModelImportError where a result has another shape than ONNX prescribes."""
        results = list(made) if isinstance(made, relax.Tuple) else [made]
        for name, result in zip(node.output, results, strict=False):
            expected = self._inferred.get(name)
            kind = getattr(result, "ty", None)
            if expected is None or not isinstance(kind, relax.TensorType) or kind.shape is None:
                continue
            if not isinstance(kind.shape, relax.ShapeExpr):
                continue
            found = [int(d) if hasattr(d, "value") else d for d in kind.shape]
            differ = len(found) != len(expected) or any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(found, expected, strict=True)
            )
            if differ:
                raise ModelImportError(
                    f"{self.where()}: TVM's ONNX importer gives it the shape ({', '.join(map(str, found))}), ONNX "
                    f"({', '.join('?' if d is None else str(d) for d in expected)}); write it with explicit pads and "
                    "without ceil_mode, or with other operators"
                )


__all__ = ["import_graph"]
