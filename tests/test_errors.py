"""The boundary of each stage: what nothing expected becomes an error of ours, with its place, cause and stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from typer.testing import CliRunner

import quantvm
from quantvm import tvm_compat
from quantvm.cli import app
from quantvm.errors import CompileError, ConfigError, ModelImportError, RunError, gist, part, stage
from quantvm.frontend import qdq_form
from quantvm.frontend.torchscript import importer as torchscript
from quantvm.lowering import pipeline
from quantvm.lowering.torch import legalize

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return quantvm.quantize(tq.QuantWrapper(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), [X])


@pytest.fixture(scope="module")
def artifact(model):
    return quantvm.compile(model, X, cache=False)


def bug(*_arguments, **_options):
    raise KeyError("foo")


class TestStage:
    def test_names_stage_place_reason_and_remedy_and_keeps_the_exception(self):
        with (
            pytest.raises(CompileError, match=r"^doing it failed at layer 3: KeyError: 'foo'\..*; do that\.") as caught,
            stage("doing it", CompileError, "do that"),
            part("layer 3"),
        ):
            bug()
        assert isinstance(caught.value.__cause__, KeyError)
        assert caught.value.is_unexpected

    def test_the_innermost_part_and_stage_count(self):
        with (
            pytest.raises(RunError, match=r"^inner failed at here"),
            stage("outer", CompileError),
            part("there"),
            stage("inner", RunError),
            part("around"),
            part("here"),
        ):
            bug()

    @pytest.mark.parametrize("kind", [ConfigError, MemoryError, KeyboardInterrupt])
    def test_our_own_errors_and_the_ends_of_a_process_pass(self, kind):
        with pytest.raises(kind) as caught, stage("x", CompileError), part("y"):
            raise kind("z")
        assert str(caught.value) == "z"
        assert not getattr(caught.value, "is_unexpected", False)

    def test_a_package_that_is_not_installed_passes_to_who_names_it(self):
        with pytest.raises(ModuleNotFoundError), stage("x", CompileError):
            raise ModuleNotFoundError("no torch", name="torch")

    def test_the_gist_is_a_sentence_or_has_its_type(self):
        assert gist(ValueError("first\n\n  the sizes do not fit.\n")) == "the sizes do not fit"
        assert gist(RuntimeError("Expected 3 channels\nframe #1")) == "Expected 3 channels"
        assert gist(KeyError("fc")) == "KeyError: 'fc'"
        assert gist(AssertionError()) == "AssertionError"
        assert len(gist(RuntimeError("a " * 5000))) < 500


class TestCompile:
    @pytest.mark.parametrize(
        ("place", "name", "kind", "said"),
        [
            (torchscript._Conversion, "_results", ModelImportError, r"importing the \w+ failed at the outputs"),
            (pipeline, "merge_channel_affines", CompileError, "lowering the model to int8 kernels failed: KeyError"),
            (legalize, "_binding", CompileError, r"lowering the model to int8 kernels failed at \w+ \(quantize\)"),
            (tvm_compat, "_executable", CompileError, "generating code failed: KeyError: 'foo'"),
        ],
    )
    def test_a_bug_in_any_stage_is_told_with_stage_and_layer(self, model, monkeypatch, capfd, place, name, kind, said):
        monkeypatch.setattr(place, name, bug)
        with pytest.raises(kind, match=rf"^{said}.*batch='static'") as caught:
            quantvm.compile(model, X, cache=False)
        assert isinstance(caught.value.__cause__, KeyError)
        assert capfd.readouterr().err == ""  # TVM, too, is silent about what was begun

    def test_a_bug_in_a_converter_names_operator_layer_and_line(self, model, monkeypatch):
        monkeypatch.setattr(torchscript, "find_converter", lambda kind: bug)
        with pytest.raises(ModelImportError, match=r"aten::quantize_per_tensor at \w+ \(\w+\.py\(\d+\): \w+\).*'foo'"):
            quantvm.compile(model, X, cache=False)

    def test_a_static_batch_is_not_told_to_be_static(self, model, monkeypatch):
        monkeypatch.setattr(legalize, "_binding", bug)
        with pytest.raises(CompileError) as caught:
            quantvm.compile(model, X, batch="static", cache=False)
        assert "static" not in str(caught.value)

    def test_the_memory_that_does_not_suffice_is_no_bug(self, model, monkeypatch):
        def full(*_arguments):
            raise MemoryError

        monkeypatch.setattr(legalize, "_binding", full)
        with pytest.raises(MemoryError):
            quantvm.compile(model, X, cache=False)

    @pytest.mark.parametrize(
        ("example", "said"),
        [
            ((), "the example inputs hold no tensor"),
            ({"x": X}, r"received an invalid combination of arguments - got \(dict"),
            ([None], "the example inputs hold no tensor"),
            ("x", "the example inputs hold no tensor"),
            (X[0], r"float32 \(3, 8, 8\): Input shape must be"),
            (X[:, :1], r"to have 3 channels, but got 1"),
            (X.double(), r"float64 \(2, 3, 8, 8\): .*Float Tensor"),
            ((X, X), "takes 1 inputs, got 2 example inputs"),
        ],
    )
    def test_example_inputs_of_any_wrong_kind(self, model, example, said):
        with pytest.raises(ModelImportError, match=said):
            quantvm.compile(model, example, cache=False)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"threads": "2"}, "threads: got '2', expected a whole number"),
            ({"threads": 2.5}, "threads: got 2.5"),
            ({"target": 3}, "target: got 3, expected native"),
            ({"batch": 4}, "unknown batch 4"),
        ],
    )
    def test_options_of_a_wrong_type(self, model, options, said):
        with pytest.raises(ConfigError, match=said):
            quantvm.compile(model, X, **options)


@pytest.mark.parametrize("flow", ["eager", "fx", "pt2e"])
def test_a_float_model_that_cannot_be_quantized(flow):
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.first = tq.QuantStub(), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            raise KeyError("foo")

    with pytest.raises(
        ConfigError, match=rf"quantizing the Stops by the flow {flow} failed: .*'foo'.*another flow"
    ) as caught:
        quantvm.quantize(Stops(), [X], flow=flow)
    assert caught.value.__cause__ is not None


class TestRun:
    @pytest.mark.parametrize(
        "inputs",
        [(), (None,), ({},), ("x",), ([[1], [1, 2]],), (X, X), (X[0],), (X[:, :2],), (X.double(),), (X.half(),),
         (X[:0],), (torch.tensor(1.0),), (np.float32(1),), (X.to_sparse(),), (X.to("meta"),), (object(),)],
        ids=lambda x: "",
    )  # fmt: skip
    def test_inputs_of_any_wrong_kind(self, artifact, inputs):
        with pytest.raises(ConfigError, match=r"input 0|takes 1 inputs"):
            artifact(*inputs)

    def test_code_that_stops_on_its_inputs(self, artifact, monkeypatch):
        artifact.prepare()
        monkeypatch.setattr(artifact, "_main", bug)
        with pytest.raises(RunError, match="running the compiled model failed: KeyError") as caught:
            artifact(X)
        assert isinstance(caught.value.__cause__, KeyError)


class TestCommand:
    @pytest.fixture
    def file(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
        torch.jit.trace(model, X).save("m.pt")
        return tmp_path

    @pytest.mark.parametrize("command", ["compile", "diff"])
    def test_a_bug_of_a_stage_is_exit_2_and_its_stack_is_kept(self, file, monkeypatch, command):
        monkeypatch.setattr(legalize, "_binding", bug)
        result = CliRunner().invoke(app, [command, "m.pt", "--input-shape", "1,3,8,8"])
        assert result.exit_code == 2
        assert "quantvm: lowering the model to int8 kernels failed at" in result.stderr
        assert "Traceback" not in result.stderr
        (path,) = file.glob("cache/last_error.txt")
        assert str(path) in result.stderr
        assert "KeyError: 'foo'" in path.read_text()

    def test_what_no_stage_caught_is_exit_3_with_its_stack(self, file, monkeypatch):
        monkeypatch.setattr("quantvm.jobs.compilation.text.compile_lines", bug)
        result = CliRunner().invoke(app, ["compile", "m.pt", "--input-shape", "1,3,8,8"])
        assert result.exit_code == 3
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("quantvm: KeyError: 'foo'. Please report this")


def test_a_bug_in_the_import_of_onnx_names_the_layer(monkeypatch):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def quantized(x, y):
        pair = [helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{y}_q"])]
        return [*pair, helper.make_node("DequantizeLinear", [f"{y}_q", "s", "z"], [y])]

    nodes = [*quantized("x", "a"), helper.make_node("Relu", ["a"], ["b"]), *quantized("b", "y")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    constants = [helper.make_tensor("s", 1, [], [0.1]), helper.make_tensor("z", 2, [], [128])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    monkeypatch.setattr(qdq_form._QdqRewriter, "_plain", bug)
    with pytest.raises(ModelImportError, match="importing the ModelProto failed at relu: KeyError: 'foo'"):
        quantvm.compile(file, cache=False)
