"""Small ONNX models of many branches from one input, and what ONNX Runtime computes of them without fusions."""

from __future__ import annotations

from typing import Any

import numpy as np


class Graph:
    """Nodes are added one by one; each value has the name of the node that makes it.

    Args:
        shape: of the input x; a string is a dynamic size.
        opset: of all operators.
    """

    def __init__(self, shape: list[Any], opset: int = 17) -> None:
        self._shape, self._opset = shape, opset
        self.nodes: list[Any] = []
        self._constants: list[Any] = []
        self.outputs: list[str] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of a new initializer."""
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its result."""
        from onnx import helper

        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def parameters(self, scale: Any, zero_point: Any, dtype: Any = np.uint8) -> tuple[str, str]:
        """Returns the names of new constants, a scale and a zero point."""
        return self.constant(scale, np.float32), self.constant(zero_point, dtype)

    def qdq(self, x: str, scale: Any = 0.0213, zero_point: Any = 121, dtype: Any = np.uint8, **axis: int) -> str:
        """Quantizes and dequantizes a value."""
        held = self.parameters(scale, zero_point, dtype)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *held, **axis), *held, **axis)

    def weight(self, integers: np.ndarray, axis: int | None = 0, dtype: Any = np.int8, scales: Any = None) -> str:
        """Returns a dequantized weight, of channels along an axis or per tensor."""
        count = 1 if axis is None else integers.shape[axis]
        held = np.linspace(0.0113, 0.0271, count) if scales is None else scales
        held, zeros = (held[0], 0) if axis is None else (held, np.zeros(count))
        stored = self.constant(integers, dtype)
        along = {} if axis is None else {"axis": axis}
        return self.op("DequantizeLinear", stored, *self.parameters(held, zeros, dtype), **along)

    def output(self, *values: str) -> None:
        """Makes values outputs of the model."""
        self.outputs.extend(values)

    def model(self) -> Any:
        """Returns the `onnx.ModelProto`."""
        from onnx import TensorProto, helper

        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self._shape)
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "graph", [x], outputs, self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=9)


def onnx_runtime(model: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    """Returns what ONNX Runtime computes, each operator on its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))


__all__ = ["Graph", "onnx_runtime"]
