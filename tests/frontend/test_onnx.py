"""ONNX models in QDQ form, written by ONNX Runtime's quantizer and by torch's exporters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend import from_onnx, import_model
from tests.quantized_modules import image

from .onnx_graphs import Graph
from .pt2e import calls, evaluate, quantize

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")


class Network(nn.Module):
    """Convolutions with ReLU and ReLU6, a residual add, pools, cat, a hard-swish and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.depthwise, self.act = nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish()
        self.pool, self.average = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Linear(16, 6, bias=False), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.pool(self.relu2(self.conv2(x) + x))
        x = torch.cat([self.act(self.depthwise(x)), x[:, :, 1:-1, 1:-1]], 1)
        return self.fc2(self.fc1(torch.flatten(self.average(x), 1)))


class _Calibration:
    def __init__(self, name: str, count: int = 3) -> None:
        self._batches = iter([{name: image(2, 3, 12, 12, seed=seed).numpy()} for seed in range(count)])

    def get_next(self):
        return next(self._batches, None)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "float.onnx"
    axes = {"x": {0: "N"}}
    torch.onnx.export(
        Network().eval(), (image(2, 3, 12, 12),), path, input_names=["x"], dynamic_axes=axes, dynamo=False,
        opset_version=17,
    )  # fmt: skip
    return path


def quantized_file(float_file: Path, name: str, **options) -> Path:
    from onnxruntime.quantization import QuantFormat, quantize_static

    path = float_file.with_name(name)
    options.setdefault("quant_format", QuantFormat.QDQ)
    quantize_static(str(float_file), str(path), _Calibration("x"), **options)
    return path


def runtime(path: Path, x: torch.Tensor) -> np.ndarray:
    """Returns what ONNX Runtime computes, each operator on its own."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def near(actual: np.ndarray, expected: np.ndarray) -> None:
    """A sum in another order may move a value over a tie, and one integer changes."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    assert (np.abs(actual - expected) < 1e-5).mean() > 0.5


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
def test_quantized_by_onnx_runtime(float_file: Path, per_channel: bool, activation: str):
    from onnxruntime.quantization import QuantType

    path = quantized_file(
        float_file, f"{activation}_{per_channel}.onnx", per_channel=per_channel,
        activation_type=QuantType[activation], weight_type=QuantType.QInt8,
    )  # fmt: skip
    module = import_model(path)
    x = image(3, 3, 12, 12, seed=9)
    near(evaluate(module, x)[0], runtime(path, x))
    check_form(module, activation.removeprefix("Q").lower())


def check_form(module, activation: str) -> None:
    """The contract between importers and the lowering."""
    assert module.attrs["quantvm.engine"] == "onnx"
    assert [v.name_hint for v in module.functions] == ["main"], "no function of TVM's importer is left"
    bound = {b.var: b.value for block in module["main"].body.blocks for b in block.bindings}
    read: set = set()
    for call in calls(module):
        name = call.op.name
        if name == "relax.dequantize":
            assert str(call.args[0].ty.dtype) in ("int8", "uint8"), "int32 biases are float constants"
            assert call.args[1].value.numpy().ndim == 0 or int(call.attrs.axis) == 0
        if name == "relax.quantize":
            assert call.attrs.out_dtype == activation
        if name == "relax.matmul":
            weight = bound[call.args[1]]
            assert weight.op.name == "relax.permute_dims"
            assert bound[weight.args[0]].op.name == "relax.dequantize"
        if name == "relax.nn.conv2d":
            assert bound[call.args[1]].op.name == "relax.dequantize"
        for argument in call.args:
            if argument in bound and getattr(bound[argument].op, "name", "") == "relax.dequantize":
                assert argument not in read, "each use has a dequantize of its own"
                read.add(argument)
    names = {var.name for var in bound}
    assert {"conv1_conv2d", "conv2_add", "depthwise_weight", "fc2_linear"} <= names


def test_exported_by_torch(tmp_path):
    pytest.importorskip("torchao")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    x = image(2, 3, 12, 12)
    program = quantize(Network(), x, "x86")
    path = tmp_path / "pt2e.onnx"
    torch.onnx.export(program, (x,), path, dynamo=True, verbose=False)
    module = import_model(path)
    batch = image(3, 3, 12, 12, seed=9)
    near(evaluate(module, batch)[0], runtime(path, batch))
    names = [call.op.name for call in calls(module)]
    assert "relax.clip" in names, "ReLU6"
    assert not {"relax.isnan", "relax.where", "relax.call_tir"} & set(names)
    check_form(module, "uint8")


def test_static_batches_and_wrong_shapes(float_file: Path):
    path = quantized_file(float_file, "static.onnx")
    x = image(4, 3, 12, 12)
    assert [int(d) for d in import_model(path, x, batch="static")["main"].params[0].ty.shape] == [4, 3, 12, 12]
    with pytest.raises(ModelImportError, match="needs example inputs"):
        import_model(path, batch="static")
    with pytest.raises(ModelImportError, match=r"input 0 has shape \(4, 3, 8, 8\), the program takes \(N, 3, 12, 12\)"):
        import_model(path, image(4, 3, 8, 8))


def test_matmul_with_a_stored_transposed_weight():
    """ONNX's MatMul holds its weight as (K, N), quantized along axis 1."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (6, 4)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, 4).astype(np.float32)
    model = made(
        [
            node("QuantizeLinear", ["x", "s", "z"], "q"),
            node("DequantizeLinear", ["q", "s", "z"], "dq"),
            node("DequantizeLinear", ["w", "ws", "wz"], "w_dq", axis=1),
            node("MatMul", ["dq", "w_dq"], "y"),
        ],
        {"s": np.float32(0.02), "z": np.uint8(7), "w": weight, "ws": scales, "wz": np.zeros(4, np.int8)},
        ["N", 6],
    )
    module = from_onnx(model)
    dequantize = next(c for c in calls(module) if c.op.name == "relax.dequantize" and hasattr(c.args[0], "value"))
    np.testing.assert_array_equal(dequantize.args[0].value.numpy(), weight.T)
    assert int(dequantize.attrs.axis) == 0
    x = image(3, 6)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused, it saturates without VNNI
    expected = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(evaluate(module, x)[0], expected, atol=1e-6)


def node(op: str, inputs: list[str], output: str, **attributes):
    return onnx.helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)


def made(nodes: list, constants: dict, shape: list, dtype: int = 1):
    """Returns a model from x to y."""
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = onnx.helper.make_tensor_value_info("x", dtype, shape)
    y = onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph(nodes, "graph", [x], [y], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def quantize_nodes() -> list:
    return [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "y")]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"s": np.float32("nan"), "z": np.uint8(0)}, "node_q: scale nan.*node_y: scale nan"),
        ({"s": np.float32(0), "z": np.uint8(0)}, r"node_q: scale 0\.0"),
        ({"s": np.float32(0.1), "z": np.int16(0)}, r"node_q\): y_zero_point .*unsupported type: tensor\(int16\)"),
    ],
)
def test_bad_parameters_name_the_nodes(constants: dict, message: str):
    with pytest.raises(ModelImportError, match=message):
        from_onnx(made(quantize_nodes(), constants, ["N", 4]))


def test_bad_files_and_models(float_file: Path, tmp_path):
    from onnxruntime.quantization import QuantFormat

    with pytest.raises(ModelImportError, match=r"this is a float model.*quantize_static"):
        import_model(float_file)
    fused = quantized_file(float_file, "fused.onnx", quant_format=QuantFormat.QOperator)
    with pytest.raises(UnsupportedOpError, match=r"QLinearConv.*quant_format=QuantFormat\.QDQ"):
        import_model(fused)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(float_file.read_bytes()[:500])
    with pytest.raises(ModelImportError, match="is truncated or no ONNX file"):
        import_model(cut)
    good = {"s": np.float32(0.1), "z": np.uint8(0)}
    dynamic = made([node("DynamicQuantizeLinear", ["x"], "q")], {}, ["N", 4])
    with pytest.raises(ModelImportError, match=r"dynamically quantized .*quantize_static"):
        from_onnx(dynamic)
    odd = made([*quantize_nodes()[:1], node("DequantizeLinear", ["q", "s", "z"], "d"),
                node("Det", ["d"], "y")], good, ["N", 4, 4])  # fmt: skip
    with pytest.raises(UnsupportedOpError, match=r"Det x1 \(first: node_y\)"):
        from_onnx(odd)
    with pytest.raises(ModelImportError, match="has dtype float64, expected float32"):
        from_onnx(made([node("Cast", ["x"], "c", to=1), node("QuantizeLinear", ["c", "s", "z"], "q"),
                        quantize_nodes()[1]], good, ["N", 4], dtype=11))  # fmt: skip


def test_torch_is_not_needed(float_file: Path):
    path = quantized_file(float_file, "alone.onnx")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from quantvm.frontend import import_model\n"
        f"print(import_model({str(path)!r}).attrs['quantvm.engine'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "onnx", done.stderr


def test_what_tvm_prints_of_a_node_is_not_among_results(capsys):
    graph = Graph(["N", 3, 8, 8])
    graph.output(graph.op("Conv", graph.qdq("x"), graph.weight(np.ones((4, 3, 3, 3))), strides=[1 << 62, 1 << 62]))
    with pytest.raises(ModelImportError, match="Conv at node_conv3: TVM's ONNX importer cannot convert it"):
        from_onnx(graph.model())
    assert capsys.readouterr().out == ""
