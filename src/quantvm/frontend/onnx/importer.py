"""TVM's ONNX importer with our own converters; results are checked against ONNX's shapes, and errors name the node."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError, gist
from quantvm.qdq.expressions import is_constant, shape_of
from quantvm.tvm_compat import closed_on_error

from . import elementwise, indexing, reductions, resize  # noqa: F401 (register converters)
from .converters import CONVERTERS, is_function
from .graph import subgraphs
from .operators import opset_of, refused_operators
from .shapes import Dims

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
           11: "float64"}  # fmt: skip


def import_graph(model: Any, shapes: dict[str, Dims]) -> tvm.IRModule:
    """Returns the output of TVM's importer, Relax with bound constants.

    Args:
        model: an `onnx.ModelProto` whose nodes have unique names.
        shapes: the shapes that ONNX infers.

    Raises:
        UnsupportedOpError: operators without a converter, all in one message; or one that its converter refuses.
        ModelImportError: a node cannot be imported, or its result would not have the shape that ONNX prescribes.
    """
    opset = opset_of(model)
    importer = _Importer(model.graph, shapes, opset)
    try:
        importer.check_operators(model.graph)
        # TVM prints the inputs of a node that it cannot convert, and stdout is for results
        with closed_on_error(importer.bb), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TVM warns about names that it changes
            return importer.from_onnx(model.graph, opset)
    except QuantvmError:
        raise
    except Exception as error:  # TVM's converters raise any kind of error
        raise ModelImportError(f"{importer.where()}: TVM's ONNX importer cannot convert it: {gist(error)}") from error


class _Importer(ONNXGraphImporter):
    def __init__(self, graph: Any, shapes: dict[str, Dims], opset: int) -> None:
        super().__init__({}, "float32", keep_params_in_input=False, sanitize=True)
        self._named = {node.name: node for node in graph.node}
        self._inferred = shapes
        self.opset_of_file = opset
        self._node: Any = None

    def check_operators(self, graph: Any) -> None:
        """Raises one UnsupportedOpError for all operators that cannot be imported."""
        rows = refused_operators([node for part in subgraphs(graph) for node in part.node], self.opset_of_file)
        if rows:
            raise UnsupportedOpError(
                f"{len(rows)} operators are not supported: {'; '.join(rows)}. Compute them by operators of `quantvm "
                "list ops`, or outside of the compiled model"
            )

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Does nothing: `check_operators` takes its place, which also knows our converters."""

    def _construct_nodes(self, graph: Any) -> None:
        """Converts the nodes; an output of the model that is a list of sizes becomes a tensor."""
        super()._construct_nodes(graph)
        for output in graph.output:
            value = self._nodes[output.name]
            if isinstance(getattr(value, "ty", None), relax.ShapeType):
                self._nodes[output.name] = self.bb.emit(relax.op.shape_to_tensor(value))

    def where(self) -> str:
        """Returns the text that names the current node in errors."""
        if self._node is None:
            return "the graph"
        return f"{self._node.op_type} at {self._node.name}"

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        node = self._named.get(attrs["tvm_custom"]["name"])
        self._node = node if node is not None and node.op_type == op_name else self._node
        converter = CONVERTERS.get(op_name)
        attrs["tvm_custom"]["opset"] = opset
        if op_name == "Resize":  # TVM's converter treats an empty input as given
            inputs = type(inputs)(None if is_constant(x) and 0 in x.value.shape else x for x in inputs)
        try:
            made = None if converter is None else converter(self.bb, list(inputs), attrs)
            made = super()._convert_operator(op_name, inputs, attrs, opset) if made is None else self.bb.normalize(made)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(f"{self.where()}: {error}") from error
        if is_function(made):
            raise UnsupportedOpError(f"{self.where()}: it has no kernel; compute it with other operators")
        if node is not None:
            self._check(node, made)
        return made

    def _check(self, node: Any, made: Any) -> None:
        """Raises ModelImportError if a result does not have the shape that ONNX prescribes."""
        results = list(made) if isinstance(made, relax.Tuple) else [made]
        for name, result in zip(node.output, results, strict=False):
            expected = self._inferred.get(name)
            kind = getattr(result, "ty", None)
            if expected is None or not isinstance(kind, relax.TensorType) or kind.shape is None:
                continue
            if not isinstance(kind.shape, relax.ShapeExpr):
                continue
            found = shape_of(result)
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
