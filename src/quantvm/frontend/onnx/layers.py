"""Computes the layers of an ONNX model with ONNX Runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from quantvm.errors import ModelImportError, last_line
from quantvm.frontend.layers import ForNoEngine, Layer, LayerAlone

from .alone import onnx_layer_alone


def has_onnxruntime() -> bool:
    """Returns whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def unfused_session(path_or_bytes: str | bytes, *, threads: int) -> Any:
    """Returns a session of ONNX Runtime that computes a model operator by operator.

    Fused kernels would round differently, and saturate on CPUs without VNNI.

    Args:
        path_or_bytes: the model's path or content.
        threads: number of threads within one operator.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])


class OnnxSource(ForNoEngine):
    """An ONNX model, computed by ONNX Runtime without fusing operators.

    Args:
        model: an `onnx.ModelProto`.
    """

    side, held = "onnxruntime", "an ONNX file"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inputs = [i.name for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
        self._outputs = [output.name for output in model.graph.output]
        self._sessions: dict[tuple[tuple[str, ...], bool], Any] = {}

    @staticmethod
    def is_installed() -> bool:
        """Returns whether ONNX Runtime is installed."""
        return has_onnxruntime()

    def layers(
        self, layers: Sequence[Layer], inputs: Sequence[torch.Tensor], *, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `LayerSource.layers`."""
        tensors = tuple(layer.value for layer in layers)
        fed = dict(zip(self._inputs, inputs, strict=True))
        if given is not None:
            fed |= {_given(i): tensor for i, tensor in enumerate(given)}
        return self._run(self._session(layers, tensors, is_given=given is not None), tensors, fed)

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the model's outputs."""
        fed = dict(zip(self._inputs, inputs, strict=True))
        return self._run(self._session((), (), is_given=False), self._outputs, fed)

    def alone(self, layers: Sequence[Layer], index: int, inputs: Sequence[torch.Tensor]) -> LayerAlone:
        """Returns one layer as an `onnx.ModelProto`, for inputs of those sizes."""
        return onnx_layer_alone(self._model, layers, index, inputs)

    def _run(self, session: Any, names: Sequence[str], fed: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in fed.items()}
        return [torch.from_numpy(array) for array in session.run(list(names), arrays)]

    def _session(self, layers: Sequence[Layer], tensors: tuple[str, ...], *, is_given: bool) -> Any:
        """Returns a session of the model that outputs some tensors; with `is_given`, readers take these from inputs."""
        key = (tensors, is_given)
        if key not in self._sessions:
            model = _with_outputs(self._model, layers, is_given=is_given).SerializeToString()
            try:
                self._sessions[key] = unfused_session(model, threads=torch.get_num_threads())
            except Exception as error:  # its errors have no other common base class
                reason = last_line(error)
                raise ModelImportError(f"onnxruntime: it cannot load the model: {reason}; compare qdq") from error
        return self._sessions[key]


def _given(index: int) -> str:
    return f"quantvm_given_{index}"


def _with_outputs(model: Any, layers: Sequence[Layer], *, is_given: bool) -> Any:
    """Returns a copy of the model that also outputs the layers' tensors; with `is_given`, their readers take inputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}
    known = {output.name for output in copy.graph.output}
    for layer in layers:
        if layer.value not in known:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(layer.value, kinds[layer.q.dtype], None))
            known.add(layer.value)
    if is_given:
        replaced = {layer.value: _given(i) for i, layer in enumerate(layers)}
        for node in copy.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = replaced.get(name, name)
        copy.graph.input.extend(
            onnx.helper.make_tensor_value_info(_given(i), kinds[layer.q.dtype], list(layer.shape))
            for i, layer in enumerate(layers)
        )
    return copy


__all__ = ["OnnxSource", "has_onnxruntime", "unfused_session"]
