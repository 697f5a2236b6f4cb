"""Single ONNX operators as cases of a table, and many of them as one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .operator_cases import Constant

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One node: arrays, `Constant` or None (left out) for its inputs."""

    op: str
    opset: int
    inputs: tuple[Any, ...]
    outputs: int = 1
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        held = [None if i is None else (i.value if isinstance(i, Constant) else i) for i in self.inputs]
        shapes = ", ".join("-" if x is None else f"{x.dtype}{list(x.shape)}" for x in held)
        options = "".join(f", {name}={value}" for name, value in self.attributes.items())
        return f"{self.op}-{self.opset}({shapes}{options})"


def held(value: Any, dtype: Any = np.float32) -> Constant:
    """Returns a constant input."""
    return Constant(np.asarray(value, dtype))


def longs(*values: Any) -> Constant:
    """Returns a constant int64 input: a vector."""
    return Constant(np.asarray(values, np.int64))


class Network:
    """The model of some cases of one operator set, whose inputs are float32.

    Attributes:
        model: an `onnx.ModelProto`.
        feeds: its inputs, in order.
        cases: the case of each output; None for the one that is quantized and dequantized.
    """

    def __init__(self, cases: Sequence[Case], opset: int, batch: str | None = None) -> None:
        from onnx import TensorProto, helper, shape_inference

        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._names: dict[Any, str] = {}
        self._batch = batch
        self.feeds: list[np.ndarray] = []
        self.cases: list[Case | None] = [None]
        scale, zero_point = self._constant(np.float32(0.02)), self._constant(np.uint8(100))
        quantized = self._given(np.linspace(-1, 1, 8, dtype=np.float32))
        domain = MICROSOFT if opset < 10 else ""
        for op, read, made in (("QuantizeLinear", quantized, "q"), ("DequantizeLinear", "q", "dq")):
            self._nodes.append(helper.make_node(op, [read, scale, zero_point], [made], name=op, domain=domain))
        outputs = ["dq"]
        for index, case in enumerate(cases):
            names = ["" if i is None else self._constant(i.value) if isinstance(i, Constant) else self._given(i)
                     for i in case.inputs]  # fmt: skip
            made = [f"{case.op}_{index}_{at}" for at in range(case.outputs)]
            name = f"{case.op}_{index}"
            self._nodes.append(helper.make_node(case.op, names, made, name=name, domain=case.domain, **case.attributes))
            outputs += made
            self.cases += [case] * case.outputs
        graph = helper.make_graph(self._nodes, "graph", self._inputs, [], self._constants)
        sets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        sets += [helper.make_opsetid(d, 1) for d in sorted({c.domain for c in cases} - {"", MICROSOFT})]
        self.model = helper.make_model(graph, opset_imports=sets, ir_version=8 if opset < 19 else 10)
        found = {
            v.name: v.type.tensor_type.elem_type for v in shape_inference.infer_shapes(self.model).graph.value_info
        }
        self.model.graph.output.extend(
            helper.make_tensor_value_info(name, found.get(name) or TensorProto.FLOAT, None) for name in outputs
        )

    def _constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _given(self, value: np.ndarray) -> str:
        """Returns the name of an input of the model, cast to the type of the array."""
        from onnx import TensorProto, helper

        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._names:
            name = f"x{len(self._inputs)}"
            shape: list[Any] = list(value.shape)
            if self._batch and shape and shape[0] == 2:
                shape[0] = self._batch
            self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            self.feeds.append(np.asarray(value, np.float32))
            if value.dtype != np.float32:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                self._nodes.append(helper.make_node("Cast", [name], [f"{name}_cast"], name=f"cast_{name}", to=kind))
                name += "_cast"
            self._names[key] = name
        return self._names[key]


__all__ = ["MICROSOFT", "Case", "Network", "held", "longs"]
