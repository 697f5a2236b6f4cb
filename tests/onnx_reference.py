"""What ONNX Runtime computes of a QDQ model, and what tells a right result of it from a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from quantvm.verification.ties import NEAR

from .random_programs import FLOAT_SUM

ArrayAny = Any


def runtime(model: Any) -> Any:
    """Returns a session that computes a model operator by operator: fused kernels round otherwise."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Quantized:
    """A tensor that is quantized while the model runs: the names before, of the integers and of what reads them."""

    before: str
    integers: str
    after: tuple[str, ...]
    scale: ArrayAny
    zero_point: ArrayAny
    axis: int


def quantized_tensors(model: Any) -> list[Quantized]:
    """Returns the tensors that a model quantizes and dequantizes again, but for constants."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constant = set(constants)
    found = []
    for node in model.graph.node:
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)
        elif node.op_type == "QuantizeLinear":
            after = [n for n in readers.get(node.output[0], []) if n.op_type == "DequantizeLinear"]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            scale, zero = constants[node.input[1]], constants[node.input[2]]
            names = tuple(n.output[0] for n in after)
            found.append(Quantized(node.input[0], node.output[0], names, scale, zero, axis))
    return found


def opened(model: Any) -> Any:
    """Returns a copy of a model that also returns the real values of each tensor that it quantizes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    for tensor in quantized_tensors(model):
        if tensor.after[0] not in known:
            copy.graph.output.append(helper.make_tensor_value_info(tensor.after[0], TensorProto.FLOAT, None))
    return copy


class FromGiven:
    """ONNX Runtime's run of a model in which all that reads quantized tensors reads given real values."""

    def __init__(self, model: Any) -> None:
        self._tensors, copy = quantized_tensors(model), onnx.ModelProto()
        copy.CopyFrom(model)
        self._outputs = [output.name for output in model.graph.output]
        given = {name: f"given_{i}" for i, tensor in enumerate(self._tensors) for name in tensor.after}
        for node in copy.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = given.get(name, name)
        known = set(self._outputs)
        for name in dict.fromkeys(given.values()):
            copy.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        for tensor in self._tensors:
            if tensor.before not in known and tensor.before not in {i.name for i in copy.graph.input}:
                copy.graph.output.append(helper.make_tensor_value_info(tensor.before, TensorProto.FLOAT, None))
                known.add(tensor.before)
        self._session = runtime(copy)

    def unexplained(self, inputs: dict[str, ArrayAny], actual: Sequence[ArrayAny], names: Sequence[str]) -> str | None:
        """Returns what of a run of the opened model is wrong, or None; see `random_programs.unexplained`."""
        values = dict(zip(names, (np.asarray(a) for a in actual), strict=True))
        given = {f"given_{i}": values[tensor.after[0]] for i, tensor in enumerate(self._tensors)}
        asked = [output.name for output in self._session.get_outputs()]
        found = dict(zip(asked, self._session.run(asked, inputs | given), strict=True)) | inputs
        for tensor in self._tensors:
            distance = _steps_from_exact(values[tensor.after[0]], found[tensor.before], tensor)
            if distance.size and distance.max() > 0.5 + NEAR:
                wrong = (distance > 0.5 + NEAR).sum()
                return (
                    f"{tensor.integers}: {wrong} of {distance.size} integers are no rounding of ONNX Runtime's value "
                    f"{tensor.before}, the farthest is {distance.max():.4g} steps away"
                )
        dequantized = {name for tensor in self._tensors for name in tensor.after}
        for name in self._outputs:
            value, wanted = values[name], found[name]
            if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
                return f"output {name}: {value.dtype}{value.shape}, expected {wanted.dtype}{wanted.shape}"
            bound = FLOAT_SUM * max(np.abs(wanted).max(initial=0), 1e-3)
            apart = np.abs(value - wanted)
            if name not in dequantized and apart.size and not apart.max() <= bound:
                return f"output {name}: {(apart > bound).sum()} of {apart.size} floats differ, by {apart.max():.4g}"
        return None


def _steps_from_exact(value: ArrayAny, x: ArrayAny, tensor: Quantized) -> ArrayAny:
    """Returns how far dequantized values are from x before rounding, in steps."""
    shape = [-1 if d == tensor.axis % x.ndim else 1 for d in range(x.ndim)]
    scale, zero = (v.astype(np.float64) for v in (tensor.scale, tensor.zero_point))
    if scale.size > 1:
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    limits = np.iinfo(tensor.zero_point.dtype)
    exact = np.clip(x.astype(np.float64) / scale + zero, limits.min, limits.max)
    return np.abs(value.astype(np.float64) / scale + zero - exact)
