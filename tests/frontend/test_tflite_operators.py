"""TFLite operators that TVM's importer takes only in part, as compiled code, against LiteRT's reference kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from quantvm.compiler import compile as compile_model
from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend import from_tflite

tflite = pytest.importorskip("tflite")
litert = pytest.importorskip("ai_edge_litert.interpreter")

from .operator_cases import Constant, floats  # noqa: E402
from .tflite_file import DTYPES, FileOperator, FileTensor, model_bytes  # noqa: E402  (needs tflite)

KIND, ACT, PADDING = tflite.BuiltinOptions, tflite.ActivationFunctionType, tflite.Padding
PARAMETERS = (0.05, 3)


@dataclass(frozen=True)
class Case:
    """One operator: arrays or `Constant` for its inputs, and the shape and type of its outputs."""

    op: str
    inputs: tuple[Any, ...]
    shape: tuple[int, ...]
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    parameters: tuple[float, int] | None = None

    def __str__(self) -> str:
        return f"{self.op} -> {list(self.shape)}, {self.options}, {self.parameters}"


def ints(value: Any) -> Constant:
    return Constant(np.asarray(value, np.int32))


def weight(*shape: int) -> Constant:
    return Constant(floats(*shape, seed=3, scale=0.4))


class Network:
    """The file of some cases, and the values of its inputs."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.tensors = [FileTensor("q", [1, 8], "int8", *PARAMETERS), FileTensor("dq", [1, 8], "float32")]
        self.operators: list[FileOperator] = []
        self.inputs, self.feeds, self.outputs = [], [], ["dq"]
        first = self._given(floats(1, 8), None)
        self.operators += [
            FileOperator(tflite.BuiltinOperator.QUANTIZE, [first], ["q"], KIND.QuantizeOptions, version=1),
            FileOperator(tflite.BuiltinOperator.DEQUANTIZE, ["q"], ["dq"], KIND.DequantizeOptions, version=1),
        ]
        for at, case in enumerate(cases):
            self._add(at, case)
        self.data = model_bytes(self.tensors, self.operators, self.inputs, self.outputs)

    def _given(self, value: np.ndarray, parameters: tuple[float, int] | None) -> str:
        name = f"x{len(self.inputs)}"
        self.tensors.append(FileTensor(name, value.shape, "float32"))
        self.inputs.append(name)
        self.feeds.append(value)
        if parameters is None:
            return name
        self.tensors.append(FileTensor(f"{name}_q", value.shape, "int8", *parameters))
        made = [f"{name}_q"]
        self.operators.append(FileOperator(tflite.BuiltinOperator.QUANTIZE, [name], made, KIND.QuantizeOptions, {}, 1))
        return made[0]

    def _add(self, at: int, case: Case) -> None:
        names = []
        for place, value in enumerate(case.inputs):
            if isinstance(value, Constant):
                names.append(f"c{at}_{place}")
                held = value.value
                given = PARAMETERS if held.dtype == np.int8 else ()
                self.tensors.append(FileTensor(names[-1], held.shape, held.dtype.name, *given, value=held))
            else:
                names.append(self._given(value, case.parameters and PARAMETERS))
        name, kind = f"o{at}", getattr(KIND, case.kind) if case.kind else 0
        self.tensors.append(FileTensor(name, case.shape, case.dtype))
        self.outputs.append(name)
        made = name
        is_quantized = case.parameters is not None and case.dtype == "float32"
        if is_quantized:
            made = f"{name}_q"
            self.tensors.append(FileTensor(made, case.shape, "int8", *case.parameters))
        code = getattr(tflite.BuiltinOperator, case.op)
        self.operators.append(FileOperator(code, names, [made], kind, case.options, version=1))
        if is_quantized:
            after = FileOperator(tflite.BuiltinOperator.DEQUANTIZE, [made], [name], KIND.DequantizeOptions, {}, 1)
            self.operators.append(after)


def reference(network: Network, kernels: str = "BUILTIN_REF") -> list[np.ndarray]:
    """Returns what LiteRT's kernels compute."""
    kind = getattr(litert.OpResolverType, kernels)
    interpreter = litert.Interpreter(model_content=network.data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    places = {d["name"]: d["index"] for d in interpreter.get_input_details()}
    for name, value in zip(network.inputs, network.feeds, strict=True):
        interpreter.set_tensor(places[name], value)
    interpreter.invoke()
    places = {d["name"]: d["index"] for d in interpreter.get_output_details()}
    return [interpreter.get_tensor(places[name]) for name in network.outputs]


X, Y, CUBE = floats(1, 4, 5, 3), floats(2, 3, 4), floats(1, 3, 3, 3)
BLOCKS = (ints([2, 3]), ints([[1, 1], [0, 1]]))
CASES = [
    Case("GELU", (X,), X.shape, "GeluOptions", {"Approximate": True}),
    Case("SOFTMAX", (floats(2, 5),), (2, 5), "SoftmaxOptions", {"Beta": 0.5}),
    Case("ARG_MAX", (X, ints(-1)), (1, 4, 5), "ArgMaxOptions", {"OutputType": 2}, "int32"),
    Case("ARG_MIN", (X, ints(1)), (1, 5, 3), "ArgMinOptions", {"OutputType": 4}, "int64"),
    Case("GATHER_ND", (X, ints([[[0, 1, 2]], [[0, 3, 4]]])), (2, 1, 3)),
    Case("GATHER_ND", (Y, ints([[0, 2], [1, 1]])), (2, 4)),
    Case("SQUEEZE", (floats(1, 3, 1, 4),), (3, 4), "SqueezeOptions"),
    Case("EXPAND_DIMS", (Y, ints(0)), (1, 2, 3, 4), "ExpandDimsOptions"),
    Case("EXPAND_DIMS", (X, ints(-1)), (1, 4, 5, 3, 1), "ExpandDimsOptions"),
    Case("FULLY_CONNECTED", (Y, weight(5, 4), weight(5)), (6, 5), "FullyConnectedOptions"),
    Case("FULLY_CONNECTED", (floats(1, 2, 2, 2), weight(5, 8), weight(5)), (1, 5), "FullyConnectedOptions",
         {"FusedActivationFunction": ACT.RELU}),
    Case("FULLY_CONNECTED", (Y, weight(5, 4), weight(5)), (2, 3, 5), "FullyConnectedOptions", {"KeepNumDims": True}),
    Case("CONV_3D", (floats(1, 4, 5, 6, 2), weight(2, 3, 2, 2, 3)), (1, 3, 3, 3, 3), "Conv3DOptions",
         {"Padding": PADDING.VALID, "StrideD": 1, "StrideH": 1, "StrideW": 2, "DilationDFactor": 1,
          "DilationHFactor": 1, "DilationWFactor": 1}),
    Case("BATCH_MATMUL", (floats(2, 4, 3), floats(2, 5, 4, seed=2)), (2, 3, 5), "BatchMatMulOptions",
         {"AdjX": True, "AdjY": True}),
    Case("BATCH_MATMUL", (Y, weight(4, 5)), (2, 3, 5), "BatchMatMulOptions"),
    Case("BATCH_MATMUL", (floats(2, 1, 3, 4), floats(3, 4, 5, seed=2)), (2, 3, 3, 5), "BatchMatMulOptions"),
    Case("SPACE_TO_BATCH_ND", (X, *BLOCKS), (6, 3, 2, 3)),
    Case("BATCH_TO_SPACE_ND", (floats(4, 2, 3, 3), ints([2, 2]), ints([[1, 0], [0, 1]])), (1, 3, 5, 3)),
    Case("SPACE_TO_BATCH_ND", (X, *BLOCKS), (6, 3, 2, 3), parameters=PARAMETERS),
    Case("BATCH_TO_SPACE_ND", (floats(4, 2, 3, 3), ints([2, 2]), ints([[1, 0], [0, 1]])), (1, 3, 5, 3),
         parameters=PARAMETERS),
    *[Case("RESIZE_NEAREST_NEIGHBOR", (X, ints(size)), (1, *size, 3), "ResizeNearestNeighborOptions",
           {"AlignCorners": True, "HalfPixelCenters": half})
      for size in ((8, 10), (3, 7), (7, 3), (1, 1)) for half in (False, True)],
    Case("PAD", (X, ints([[0, 0], [1, 2], [0, 1], [0, 0]])), (1, 7, 6, 3), parameters=PARAMETERS),
    Case("MIRROR_PAD", (X, ints([[0, 0], [1, 2], [2, 1], [0, 0]])), (1, 7, 8, 3), "MirrorPadOptions", {"Mode": 0},
         parameters=PARAMETERS),
    Case("TRANSPOSE", (X, ints([0, 3, 1, 2])), (1, 3, 4, 5), parameters=PARAMETERS),
    Case("SQUEEZE", (floats(1, 3, 1, 4),), (3, 4), "SqueezeOptions", {"SqueezeDims": [0, 2]}, parameters=PARAMETERS),
    Case("EXPAND_DIMS", (Y, ints(1)), (2, 1, 3, 4), "ExpandDimsOptions", parameters=PARAMETERS),
    Case("STRIDED_SLICE", (X, ints([0, -1, -1, -1]), ints([1, -5, -6, -4]), ints([1, -1, -2, -1])), (1, 4, 3, 3),
         "StridedSliceOptions", parameters=PARAMETERS),
    Case("PACK", (Y, floats(2, 3, 4, seed=2)), (2, 2, 3, 4), "PackOptions", {"ValuesCount": 2, "Axis": 1},
         parameters=PARAMETERS),
    Case("GATHER", (X, ints([2, 0, 1])), (1, 3, 5, 3), "GatherOptions", {"Axis": 1}, parameters=PARAMETERS),
    Case("TILE", (X, ints([1, 2, 1, 3])), (1, 8, 5, 9), parameters=PARAMETERS),
    Case("REVERSE_V2", (X, ints([1])), (1, 4, 5, 3), parameters=PARAMETERS),
    Case("SPACE_TO_DEPTH", (floats(1, 4, 6, 3),), (1, 2, 3, 12), "SpaceToDepthOptions", {"BlockSize": 2},
         parameters=PARAMETERS),
    Case("DEPTH_TO_SPACE", (floats(1, 2, 3, 8),), (1, 4, 6, 2), "DepthToSpaceOptions", {"BlockSize": 2},
         parameters=PARAMETERS),
    Case("RESIZE_NEAREST_NEIGHBOR", (X, ints([7, 3])), (1, 7, 3, 3), "ResizeNearestNeighborOptions",
         {"AlignCorners": True}, parameters=PARAMETERS),
    *[Case("TRANSPOSE_CONV", (ints(shape), weight(2, *window, 3), X, *bias), shape, "TransposeConvOptions",
           {"Padding": padding, "StrideH": 2, "StrideW": 3, "FusedActivationFunction": activation})
      for shape, window, padding, bias, activation in (
          ((1, 8, 14, 2), (3, 3), PADDING.SAME, (weight(2),), ACT.RELU), ((1, 7, 15, 2), (1, 4), PADDING.SAME, (), 0),
          ((1, 9, 15, 2), (3, 3), PADDING.VALID, (), 0), ((1, 8, 16, 2), (1, 2), PADDING.VALID, (weight(2),), 0))],
    *[Case("MIRROR_PAD", (X, ints([[0, 0], [1, 4], [3, 1], [0, 2]])), (1, 9, 9, 5), "MirrorPadOptions", {"Mode": 1},
           parameters=parameters) for parameters in (None, PARAMETERS)],
    *[Case("CUMSUM", (Y, ints(axis)), Y.shape, "CumsumOptions", {"Exclusive": exclusive, "Reverse": reverse})
      for axis, exclusive, reverse in ((1, False, False), (-1, False, True), (1, True, True), (2, True, False))],
    Case("GATHER", (Y, ints([[1, 0], [2, 1]])), (2, 2, 4), "GatherOptions", {"Axis": 1, "BatchDims": 1}),
    Case("GATHER", (floats(2, 3, 4, 2), ints([[[1, 0], [3, 1]], [[0, 0], [2, 3]]])), (2, 3, 2, 2, 2), "GatherOptions",
         {"Axis": 2, "BatchDims": -2}),
    Case("GATHER", (floats(2, 3, 4, 5), ints([[1, 0, 4], [2, 1, 1]])), (2, 3, 4, 3), "GatherOptions",
         {"Axis": 3, "BatchDims": 1}, parameters=PARAMETERS),
    Case("SCATTER_ND", (ints([[0, 1], [2, 0], [0, 1]]), floats(3, 4), ints([3, 2, 4])), (3, 2, 4)),
    Case("SCATTER_ND", (ints([[[3], [1]]]), floats(1, 2), ints([5])), (5,)),
    Case("ARG_MAX", (X, ints(-1)), (1, 4, 5), "ArgMaxOptions", {"OutputType": 2}, "int32", parameters=PARAMETERS),
    Case("ARG_MIN", (floats(1, 4, 9, 3, scale=0.1), ints(2)), (1, 4, 3), "ArgMinOptions", {"OutputType": 4}, "int64",
         parameters=PARAMETERS),
    Case("LOCAL_RESPONSE_NORMALIZATION", (floats(1, 2, 3, 9),), (1, 2, 3, 9), "LocalResponseNormalizationOptions",
         {"Radius": 2, "Bias": 1.5, "Alpha": 0.3, "Beta": 0.75}),
    Case("ADD", (CUBE, weight(3, 3)), CUBE.shape, "AddOptions"),
    Case("MUL", (floats(3, 3), CUBE), CUBE.shape, "MulOptions"),
    Case("SUB", (CUBE, weight(3, 1, 1)), CUBE.shape, "SubOptions"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _types(monkeypatch) -> None:
    monkeypatch.setitem(DTYPES, "int64", 4)


def test_operators(tmp_path):
    network = Network(CASES)
    (tmp_path / "model.tflite").write_bytes(network.data)
    found = compile_model(tmp_path / "model.tflite", cache=False)(*network.feeds)
    expected = reference(network)
    optimized = reference(network, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    for case, a, b, other in zip([None, *CASES], found, expected, optimized, strict=True):
        if case is not None and case.op == "LOCAL_RESPONSE_NORMALIZATION":  # docs/numerics.md
            b = other
        assert a.dtype == b.dtype, case
        tolerance = 1e-6 * float(np.abs(b).max()) if a.dtype == np.float32 else 0
        np.testing.assert_allclose(a, b, 0, tolerance, err_msg=str(case))


REFUSED = [
    Case("ADD", (Y, Y), Y.shape, "AddOptions", {"FusedActivationFunction": ACT.TANH}),
    Case("GATHER", (Y, ints([2, -1])), (2, 2, 4), "GatherOptions", {"Axis": 1}),
    Case("GATHER_ND", (Y, ints([[1, 3]])), (1, 4)),
    Case("SCATTER_ND", (ints([[5]]), floats(1), ints([5])), (5,)),
    Case("ATAN2", (X, floats(1, 1, 1, 3)), X.shape),
    Case("RESIZE_BILINEAR", (X, ints([1, 1])), (1, 1, 1, 3), "ResizeBilinearOptions", {"AlignCorners": True}),
    Case("MIRROR_PAD", (X, ints([[0, 0], [5, 0], [0, 0], [0, 0]])), (1, 9, 5, 3), "MirrorPadOptions", {"Mode": 1}),
    Case("DIV", (X, Constant(np.full(3, 3, np.int8))), X.shape, "DivOptions", parameters=PARAMETERS),
    Case("SUM", (X, ints([3])), (1, 4, 5), "ReducerOptions", parameters=(1e-9, 0)),
    Case("NEG", (X,), X.shape, "NegOptions", parameters=PARAMETERS),
    Case("REDUCE_PROD", (X, ints([3])), (1, 4, 5), "ReducerOptions", parameters=PARAMETERS),
    Case("TILE", (X, ints([1, 2, 1, 3])), (1, 8, 5, 9), parameters=(0.06, 3)),
    Case("MATRIX_DIAG", (floats(2, 3),), (2, 3, 3), "MatrixDiagOptions"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.op)
def test_refused(case: Case):
    """The error names the operator and its output."""
    with pytest.raises(UnsupportedOpError, match=f"{case.op} at o0"):
        from_tflite(Network([case]).data)


def test_result_of_another_shape_than_the_file_says():
    with pytest.raises(ModelImportError, match=r"TILE at o0: .*\[1, 8, 5, 9\], the file says \[1, 8, 5, 6\]"):
        from_tflite(Network([Case("TILE", (X, ints([1, 2, 1, 3])), (1, 8, 5, 6))]).data)
