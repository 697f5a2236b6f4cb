"""TFLite files: quantized operators in channels-last order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend import from_tflite, import_model

from .pt2e import calls, evaluate

tflite = pytest.importorskip("tflite")

from .tflite_file import FileOperator, FileTensor, model_bytes  # noqa: E402  (needs tflite)

OP, KIND, ACT, PADDING = tflite.BuiltinOperator, tflite.BuiltinOptions, tflite.ActivationFunctionType, tflite.Padding
RNG = np.random.default_rng(0)


def weight(name: str, shape: list[int], axis: int) -> FileTensor:
    scales = RNG.uniform(0.005, 0.02, shape[axis]).astype(np.float32)
    return FileTensor(name, shape, "int8", scales, 0, axis, RNG.integers(-127, 128, shape).astype(np.int8))


def bias(name: str, of: FileTensor, x_scale: float) -> FileTensor:
    scale = (of.scale * np.float32(x_scale)).astype(np.float32)
    return FileTensor(name, [len(scale)], "int32", scale, 0, 0, RNG.integers(-500, 500, len(scale)).astype(np.int32))


W1, WD, WF = weight("w1", [8, 3, 3, 3], 0), weight("wd", [1, 3, 3, 8], 3), weight("wf", [5, 64], 0)
B1, BD, BF = bias("b1", W1, 0.02), bias("bd", WD, 0.03), bias("bf", WF, 0.0625)
WINDOW = {"Padding": PADDING.VALID, "StrideH": 2, "StrideW": 2, "FilterHeight": 2, "FilterWidth": 2}


def conv(stride: int, activation: int = ACT.NONE, **more: int) -> dict[str, Any]:
    return {
        "Padding": PADDING.SAME, "StrideH": stride, "StrideW": stride, "DilationHFactor": 1, "DilationWFactor": 1,
        "FusedActivationFunction": activation, **more,
    }  # fmt: skip


def network() -> bytes:
    """conv + ReLU6, depthwise, add + ReLU, average and max pool, concatenation, reshape, fully connected."""
    tensors = [
        FileTensor("x", [1, 8, 8, 3], "float32"), FileTensor("q", [1, 8, 8, 3], scale=0.02, zero_point=3),
        W1, B1, FileTensor("stem/Relu6", [1, 4, 4, 8], scale=0.03, zero_point=-128),
        WD, BD, FileTensor("depthwise", [1, 4, 4, 8], scale=0.05, zero_point=2),
        FileTensor("a", [1, 4, 4, 8], scale=0.0625, zero_point=1),
        FileTensor("p", [1, 2, 2, 8], scale=0.0625, zero_point=1),
        FileTensor("m", [1, 2, 2, 8], scale=0.0625, zero_point=1),
        FileTensor("cat", [1, 2, 2, 16], scale=0.0625, zero_point=1),
        FileTensor("shape", [2], "int32", value=np.array([1, 64], np.int32)),
        FileTensor("r", [1, 64], scale=0.0625, zero_point=1),
        WF, BF, FileTensor("logits", [1, 5], scale=0.08, zero_point=4), FileTensor("y", [1, 5], "float32"),
    ]  # fmt: skip
    operators = [
        FileOperator(OP.QUANTIZE, ["x"], ["q"], KIND.QuantizeOptions),
        FileOperator(OP.CONV_2D, ["q", "w1", "b1"], ["stem/Relu6"], KIND.Conv2DOptions, conv(2, ACT.RELU6)),
        FileOperator(
            OP.DEPTHWISE_CONV_2D, ["stem/Relu6", "wd", "bd"], ["depthwise"], KIND.DepthwiseConv2DOptions,
            conv(1, DepthMultiplier=1),
        ),
        FileOperator(
            OP.ADD, ["depthwise", "stem/Relu6"], ["a"], KIND.AddOptions, {"FusedActivationFunction": ACT.RELU}
        ),
        FileOperator(OP.AVERAGE_POOL_2D, ["a"], ["p"], KIND.Pool2DOptions, WINDOW),
        FileOperator(OP.MAX_POOL_2D, ["a"], ["m"], KIND.Pool2DOptions, WINDOW),
        FileOperator(OP.CONCATENATION, ["p", "m"], ["cat"], KIND.ConcatenationOptions, {"Axis": 3}),
        FileOperator(OP.RESHAPE, ["cat", "shape"], ["r"], KIND.ReshapeOptions, {"NewShape": [1, 64]}, version=1),
        FileOperator(OP.FULLY_CONNECTED, ["r", "wf", "bf"], ["logits"], KIND.FullyConnectedOptions),
        FileOperator(OP.DEQUANTIZE, ["logits"], ["y"], KIND.DequantizeOptions),
    ]  # fmt: skip
    return model_bytes(tensors, operators, ["x"], ["y"])


def requantized(x: torch.Tensor, scale: float, zero_point: int, high: int = 127) -> torch.Tensor:
    """Returns x after quantization and dequantization."""
    s = torch.tensor(scale, dtype=torch.float32)
    return (torch.clamp(torch.round(x / s) + zero_point, -128, high) - zero_point) * s


def real(tensor: FileTensor) -> torch.Tensor:
    """Returns the float value of a constant."""
    shape = [1] * len(tensor.shape)
    shape[tensor.axis] = -1
    return torch.from_numpy(tensor.value.astype(np.float32) * tensor.scale.reshape(shape))


def reference(x: np.ndarray) -> np.ndarray:
    """The network by torch's float operators, in (N, C, H, W)."""
    y = requantized(torch.from_numpy(x).permute(0, 3, 1, 2), 0.02, 3)
    y = F.conv2d(F.pad(y, (0, 1, 0, 1)), real(W1).permute(0, 3, 1, 2), real(B1), stride=2)
    stem = requantized(y, 0.03, -128, high=72)
    y = requantized(F.conv2d(stem, real(WD).permute(3, 0, 1, 2), real(BD), padding=1, groups=8), 0.05, 2)
    a = requantized(torch.relu(y + stem), 0.0625, 1)
    pooled = torch.cat([requantized(F.avg_pool2d(a, 2), 0.0625, 1), F.max_pool2d(a, 2)], 1)
    y = F.linear(pooled.permute(0, 2, 3, 1).reshape(1, 64), real(WF), real(BF))
    return requantized(y, 0.08, 4).numpy()


def test_quantized_network(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(network())
    module = import_model(path)
    assert [int(d) for d in module["main"].params[0].ty.shape] == [1, 8, 8, 3], "the file's own order"
    for _ in range(3):
        x = RNG.standard_normal((1, 8, 8, 3)).astype(np.float32)
        actual, expected = evaluate(module, torch.from_numpy(x))[0], reference(x)
        # a sum in another order may move one value over a tie
        assert np.abs(actual - expected).max() <= 0.081
        assert (np.abs(actual - expected) < 1e-5).mean() >= 0.8


def test_form():
    module = from_tflite(network())
    found = {call.op.name.removeprefix("relax."): call for call in calls(module)}
    assert found["nn.conv2d"].attrs.data_layout == "NCHW"
    assert found["nn.conv2d"].attrs.kernel_layout == "OIHW"
    assert found["nn.max_pool2d"].attrs.layout == "NCHW"
    bound = {b.var: b.value for block in module["main"].body.blocks for b in block.bindings}
    assert {"stem_Relu6_conv2d", "depthwise_add", "logits_linear"} <= {var.name for var in bound}
    for call in calls(module):
        if call.op.name == "relax.nn.conv2d":
            source = bound[call.args[1]]
            assert source.op.name == "relax.dequantize"
            assert int(source.attrs.axis) == 0
        if call.op.name == "relax.nn.avg_pool2d":
            assert str(call.ty.dtype) == "float32", "TVM's own importer averages integers and cuts the fraction off"


def _single(code: int, tensors: list[FileTensor], kind: int = 0) -> bytes:
    operator = FileOperator(code, [tensors[0].name], [tensors[1].name], kind)
    return model_bytes(tensors, [operator], [tensors[0].name], [tensors[1].name])


def test_errors(tmp_path):
    floats = [FileTensor("x", [1, 4], "float32"), FileTensor("y", [1, 4], "float32")]
    with pytest.raises(ModelImportError, match="this is a float model"):
        from_tflite(_single(OP.RELU, floats))
    integers = [FileTensor("x", [1, 4], scale=0.1), FileTensor("y", [1, 4], "float32")]
    with pytest.raises(ModelImportError, match=r"inputs x are quantized already.*inference_input_type=tf\.float32"):
        from_tflite(_single(OP.DEQUANTIZE, integers, KIND.DequantizeOptions))
    with pytest.raises(UnsupportedOpError, match="L2_NORMALIZATION"):
        from_tflite(
            _single(OP.L2_NORMALIZATION, [FileTensor("x", [1, 4], scale=0.1), FileTensor("y", [1, 4], scale=1)])
        )
    with pytest.raises(ModelImportError, match="is no TFLite file"):
        from_tflite(b"nothing of the kind")
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(network()[:200])
    with pytest.raises(ModelImportError, match=r"is damaged"):
        import_model(cut)
    whole = tmp_path / "whole.tflite"
    whole.write_bytes(network())
    with pytest.raises(ModelImportError, match=r"input 0 has shape \(2, 8, 8, 3\), the program takes \(1, 8, 8, 3\)"):
        import_model(whole, torch.zeros(2, 8, 8, 3))
