"""Pools with any padding, compiled, against the frameworks' own results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tvm import relax

import quantvm
from quantvm.errors import CompileError
from quantvm.frontend import import_model
from quantvm.kernels.pool import pool
from quantvm.lowering.tensors import Tensor, call_kernel, check_result
from quantvm.numerics.pool_geometry import PoolAxis
from quantvm.torch_compat import quantization_engine
from quantvm.verification.qdq_in_float import QdqInFloat

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (needs onnx)

SIZE, SCALE = (7, 6), 0.0625


def _node_cases() -> list[tuple[str, dict[str, object]]]:
    """Pools of a 7 x 6 image. Of ceil_mode only what ONNX's own shape inference and ONNX Runtime agree on."""
    even, uneven = {"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [3, 2], "strides": [2, 3]}
    dilated = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 2, 1]}
    cases: list[tuple[str, dict[str, object]]] = [
        ("MaxPool", {**even, "pads": [0, 0, 1, 1]}),
        ("MaxPool", {**uneven, "pads": [0, 1, 1, 0]}),
        ("MaxPool", {"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3], "strides": [1, 2]}),
        ("MaxPool", {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 3], "strides": [1, 2]}),
        ("MaxPool", {**dilated, "ceil_mode": 1, "strides": [2, 2]}),
        ("AveragePool", {"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3], "strides": [1, 2]}),
        ("AveragePool", {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 3], "strides": [1, 2]}),
    ]
    for include in (0, 1):
        cases += [
            ("AveragePool", {**even, "pads": [0, 0, 1, 1], "count_include_pad": include}),
            ("AveragePool", {**even, "pads": [0, 1, 1, 0], "count_include_pad": include, "ceil_mode": 1}),
            ("AveragePool", {**uneven, "pads": [1, 0, 0, 1], "count_include_pad": include}),
            ("AveragePool", {**dilated, "count_include_pad": include}),
        ]
    return cases


def _onnx_model(cases, opset: int = 19):
    """x -> quantize -> dequantize -> each pool -> quantize -> dequantize."""
    scale, zero = numpy_helper.from_array(np.float32(SCALE), "s"), numpy_helper.from_array(np.uint8(77), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    outputs = []
    for i, (kind, options) in enumerate(cases):
        nodes += [
            helper.make_node(kind, ["d"], [f"p{i}"], **options),
            helper.make_node("QuantizeLinear", [f"p{i}", "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"y{i}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, *SIZE])
    graph = helper.make_graph(nodes, "pools", [x], outputs, [scale, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _unfused(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_onnx_pools_with_any_padding(tmp_path):
    """The scale is a power of two, so that no sum of ONNX Runtime's has an error: qdq has its bits."""
    cases = _node_cases()
    model = _onnx_model(cases)
    onnx.save(model, tmp_path / "pools.onnx")
    x = np.random.default_rng(3).standard_normal((2, 5, *SIZE)).astype(np.float32) * 3
    expected = _unfused(model).run(None, {"x": x})
    outputs = quantvm.compile(tmp_path / "pools.onnx", cache=False)(x)
    integer = quantvm.compile(tmp_path / "pools.onnx", numerics="integer", cache=False)(x)
    plain = QdqInFloat(import_model(tmp_path / "pools.onnx"))(x)
    for case, want, got, got_integer, got_plain in zip(cases, expected, outputs, integer, plain, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=str(case))
        np.testing.assert_array_equal(got_plain, want, err_msg=str(case))
        assert got_integer.shape == want.shape, case
        # rounds averages towards the integer 0
        assert np.abs(got_integer - want).max() <= (SCALE if case[0] == "AveragePool" else 0), case


class Pools(nn.Module):
    """Pools of a quantized tensor as PyTorch has them."""

    def forward(self, x):
        q = torch.quantize_per_tensor(x, 0.05, 77, torch.quint8)
        padded = F.pad(q, (0, 1, 1, 0))
        pooled = [
            F.max_pool2d(padded, 2, 2),
            F.max_pool2d(padded, 3, 2, 1),
            F.avg_pool2d(padded, 3, 2),
            F.max_pool2d(q, 2, 2, 1, 1, True),
            F.max_pool2d(q, 3, 2, 1, 2, True),
            F.max_pool2d(q, 2, 3, 1, 1, True),
            F.avg_pool2d(q, 2, 3, 1, True, True),
            F.avg_pool2d(q, 3, 2, 1, True, False),
            F.avg_pool2d(q, (1, 2), (3, 2), (0, 1), True, False),
            F.adaptive_avg_pool2d(q, (3, 5)),
            F.adaptive_avg_pool2d(q, (8, 2)),
            F.adaptive_avg_pool2d(q, (None, 1)),
        ]
        return tuple(y.dequantize() for y in pooled)


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_torch_pools_with_any_padding(engine):
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((2, 9, *SIZE)).astype(np.float32)) * 3
    with quantization_engine(engine):
        traced = torch.jit.trace(Pools(), x)
        expected = [y.numpy() for y in traced(x)]
        outputs = quantvm.compile(traced, x, engine=engine, cache=False)(x.numpy())
    for i, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        np.testing.assert_array_equal(got, want, err_msg=str(i))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_window_of_small_axes(ceil_mode):
    """Output sizes and counts of PyTorch's own pools, and no window reads beyond the input."""
    for size in range(1, 7):
        for kernel in (1, 2, 3):
            for stride in (1, 2, 3):
                for pad in range(kernel // 2 + 1):
                    if size + 2 * pad < kernel:
                        continue
                    axis = PoolAxis(size, kernel, stride, pad, pad, ceil_mode=ceil_mode)
                    ones = torch.ones(1, 1, size)
                    inside = F.avg_pool1d(ones, kernel, stride, pad, ceil_mode, True)[0, 0]
                    assert axis.out_size == len(inside), axis
                    for i, share in enumerate(inside.tolist()):
                        first, count, _ = axis.inside(i)
                        assert first >= 0
                        assert first + count <= size
                        assert share == pytest.approx(count / axis.counted(i)), (axis, i)


def test_dilated_taps_are_those_inside():
    for size, kernel, dilation, before, after in ((5, 3, 2, 2, 1), (2, 2, 3, 1, 1), (7, 3, 3, 0, 2), (1, 2, 2, 1, 1)):
        axis = PoolAxis(size, kernel, 1, before, after, dilation)
        for out in range(axis.out_size):
            taps = [axis.start(out) + k * dilation for k in range(kernel)]
            first, count, step = axis.inside(out)
            assert count >= 0
            assert [first + i * step for i in range(count)] == [t for t in taps if 0 <= t < size], (axis, out)
            assert axis.counted(out) == sum(t < size + after for t in taps), (axis, out)


def test_other_shapes_than_those_deduced_are_no_code():
    """A kernel or a rule that computes another shape than Relax deduced ends in an error that names the layer."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([2, 7, 6, 5], "uint8"))
    like = Tensor(x, (2, 5, 7, 6), "NHWC")
    check_result(like, relax.TensorType([2, 5, 7, 6], "float32"), "features.pool")
    with pytest.raises(
        CompileError, match=r"layer features\.pool: the result is \(2, 5, 7, 6\), expected \(2, 5, 8, 6\)"
    ):
        check_result(like, relax.TensorType([2, 5, 8, 6], "float32"), "features.pool")
    kernel = pool.max_pool2d(pool.PoolShape(*SIZE, 5, (2, 2), (2, 2), (0, 0, 1, 1)))
    with builder.function("main", [x]):
        y = call_kernel(builder, kernel, [x], [2, 4, 3, 5], "uint8", "features.pool")
        for shape, dtype in (([2, 3, 3, 5], "uint8"), ([2, 4, 3, 5], "int8"), ([2, 4, 3], "uint8")):
            with pytest.raises(CompileError, match=r"features\.pool: the result of kernel max_pool2d_u8"):
                call_kernel(builder, kernel, [x], shape, dtype, "features.pool")
        builder.emit_func_output(y)
