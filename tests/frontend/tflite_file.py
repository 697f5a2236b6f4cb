"""Writes small quantized TFLite files: there is no TensorFlow here, so the flatbuffer is put together by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

DTYPES = {"float32": 0, "int32": 2, "uint8": 3, "int8": 9}


@dataclass
class FileTensor:
    """A tensor of the file; constants have a value."""

    name: str
    shape: Sequence[int]
    dtype: str = "int8"
    scale: Any = None
    zero_point: Any = 0
    axis: int = 0
    value: np.ndarray | None = None


@dataclass
class FileOperator:
    """An operator: its builtin code, the names of its tensors, its options, and its version."""

    code: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    options_kind: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 3


def _vector(b: Any, start: Any, values: Sequence[Any], prepend: Any) -> int:
    start(b, len(values))
    for value in reversed(values):
        prepend(value)
    return b.EndVector()


def _quantization(b: Any, tensor: FileTensor) -> int:
    scales = np.atleast_1d(np.asarray(tensor.scale, np.float32))
    zero_points = np.broadcast_to(np.asarray(tensor.zero_point, np.int64), scales.shape)
    scale = b.CreateNumpyVector(scales)
    zero_point = b.CreateNumpyVector(np.ascontiguousarray(zero_points))
    tflite.QuantizationParametersStart(b)
    tflite.QuantizationParametersAddScale(b, scale)
    tflite.QuantizationParametersAddZeroPoint(b, zero_point)
    tflite.QuantizationParametersAddQuantizedDimension(b, tensor.axis)
    return tflite.QuantizationParametersEnd(b)


def _options(b: Any, operator: FileOperator) -> int:
    kind = {value: name for name, value in vars(tflite.BuiltinOptions).items() if isinstance(value, int)}
    name = kind[operator.options_kind]
    values = {
        key: _vector(b, getattr(tflite, f"{name}Start{key}Vector"), value, b.PrependInt32)
        if isinstance(value, (list, tuple))
        else value
        for key, value in operator.options.items()
    }
    getattr(tflite, f"{name}Start")(b)
    for key, value in values.items():
        getattr(tflite, f"{name}Add{key}")(b, value)
    return getattr(tflite, f"{name}End")(b)


def model_bytes(
    tensors: Sequence[FileTensor], operators: Sequence[FileOperator], inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """Returns the file."""
    b = flatbuffers.Builder(1 << 16)
    index = {tensor.name: at for at, tensor in enumerate(tensors)}
    buffers = []
    for data in [None, *(tensor.value for tensor in tensors)]:
        content = None if data is None else b.CreateNumpyVector(np.frombuffer(data.tobytes(), np.uint8))
        tflite.BufferStart(b)
        if content is not None:
            tflite.BufferAddData(b, content)
        buffers.append(tflite.BufferEnd(b))
    written = []
    for at, tensor in enumerate(tensors):
        name, quantization = b.CreateString(tensor.name), None if tensor.scale is None else _quantization(b, tensor)
        shape = _vector(b, tflite.TensorStartShapeVector, list(tensor.shape), b.PrependInt32)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, DTYPES[tensor.dtype])
        tflite.TensorAddBuffer(b, at + 1)
        tflite.TensorAddName(b, name)
        if quantization is not None:
            tflite.TensorAddQuantization(b, quantization)
        written.append(tflite.TensorEnd(b))
    codes = sorted({(operator.code, operator.version) for operator in operators})
    code_tables = []
    for code, version in codes:
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddBuiltinCode(b, code)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
        tflite.OperatorCodeAddVersion(b, version)
        code_tables.append(tflite.OperatorCodeEnd(b))
    made = []
    for operator in operators:
        names = (operator.inputs, operator.outputs)
        starts = (tflite.OperatorStartInputsVector, tflite.OperatorStartOutputsVector)
        ends = [
            _vector(b, start, [index[n] for n in part], b.PrependInt32)
            for start, part in zip(starts, names, strict=True)
        ]
        options = _options(b, operator) if operator.options_kind else None
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, codes.index((operator.code, operator.version)))
        tflite.OperatorAddInputs(b, ends[0])
        tflite.OperatorAddOutputs(b, ends[1])
        if options is not None:
            tflite.OperatorAddBuiltinOptionsType(b, operator.options_kind)
            tflite.OperatorAddBuiltinOptions(b, options)
        made.append(tflite.OperatorEnd(b))
    parts = [
        _vector(b, tflite.SubGraphStartTensorsVector, written, b.PrependUOffsetTRelative),
        _vector(b, tflite.SubGraphStartInputsVector, [index[n] for n in inputs], b.PrependInt32),
        _vector(b, tflite.SubGraphStartOutputsVector, [index[n] for n in outputs], b.PrependInt32),
        _vector(b, tflite.SubGraphStartOperatorsVector, made, b.PrependUOffsetTRelative),
    ]
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, parts[0])
    tflite.SubGraphAddInputs(b, parts[1])
    tflite.SubGraphAddOutputs(b, parts[2])
    tflite.SubGraphAddOperators(b, parts[3])
    subgraph = tflite.SubGraphEnd(b)
    subgraphs = _vector(b, tflite.ModelStartSubgraphsVector, [subgraph], b.PrependUOffsetTRelative)
    all_buffers = _vector(b, tflite.ModelStartBuffersVector, buffers, b.PrependUOffsetTRelative)
    all_codes = _vector(b, tflite.ModelStartOperatorCodesVector, code_tables, b.PrependUOffsetTRelative)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, all_codes)
    tflite.ModelAddSubgraphs(b, subgraphs)
    tflite.ModelAddBuffers(b, all_buffers)
    b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
    return bytes(b.Output())
