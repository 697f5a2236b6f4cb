"""`quantvm compile` and `quantvm cache`, from the command line to the file."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import quantvm
from quantvm.cli import app
from quantvm.jobs.compilation import compile_to_file as compiling
from quantvm.jobs.compilation.config import CompileConfig
from quantvm.jobs.compilation.text import audit_table
from quantvm.report.table import aligned, bytes_text
from tests.quantized_modules import Quantized, SmallNetwork, image, save_traced

SHAPE = (3, 19, 17)
FILE = ("--input-shape", "1,3,19,17", "--threads", "1")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Returns a function that runs a command line in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUANTVM_CACHE_BYTES")
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def network():
    torch.backends.quantized.engine = "fbgemm"
    return SmallNetwork()


@pytest.fixture(scope="module")
def program(network, tmp_path_factory):
    return save_traced(network, image(1, *SHAPE), tmp_path_factory.mktemp("program") / "small.pt")


@pytest.fixture(scope="module")
def half_float(tmp_path_factory):
    """A program of which one operator stays float."""
    module = Quantized(lambda x: torch.quantize_per_tensor(torch.softmax(x.dequantize(), 1), 0.1, 3, torch.quint8))
    return save_traced(module, image(1, 3, 4, 4), tmp_path_factory.mktemp("program") / "softmax.pt")


def test_a_torchscript_file_becomes_a_model_file(cli, program, network, tmp_path):
    result = cli("compile", program, "-o", "small.qvm", *FILE)
    assert result.exit_code == 0, result.output
    assert "Multiply-adds in int8 kernels: 100 %" in result.stdout
    assert "Written: small.qvm" in result.stdout
    x = image(2, *SHAPE)
    assert torch.equal(quantvm.load(tmp_path / "small.qvm")(x), network(x))


def test_json_says_all(cli, program):
    row = json.loads(cli("compile", program, "-o", "small.qvm", "--json", *FILE).stdout)
    steps = {"scale": float(np.float32(0.0417)), "zero_point": 100, "dtype": "uint8"}
    own = {"name": "x", "shape": [None, *SHAPE], "dtype": "float32", "symbols": []}
    assert row["inputs"] == [{**own, "quantization": steps}]
    assert row["outputs"][0]["quantization"]["zero_point"] == 128
    assert (row["int8_mac_share"], row["float_ops"], row["problem"], row["audit"]) == (1.0, [], None, None)
    assert (row["cached"], len(row["sha256"])) == (False, 64)
    again = json.loads(cli("compile", program, "--json", *FILE).stdout)
    assert (again["cached"], again["file"], again["size_bytes"]) == (True, None, None)
    assert again["kernels"] == row["kernels"]


def test_the_audit_is_of_code_compiled_anew(cli, program):
    cli("compile", program, *FILE)
    result = cli("compile", program, "--audit", "--json", *FILE)
    row = json.loads(result.stdout)
    assert not row["cached"]
    assert sum(kernel["calls"] for kernel in row["audit"]) == sum(row["kernels"].values())
    text = cli("compile", program, "--audit", *FILE).stdout
    assert "function" in text
    assert f"total of {len(row['audit'])} functions" in text


def test_too_little_in_int8_is_exit_1_and_the_file_is_written(cli, program, tmp_path, monkeypatch):
    assert cli("compile", program, "--min-int8-macs", "1", *FILE).exit_code == 0
    complete = compiling.compiled

    def half(*arguments):
        artifact = complete(*arguments)
        artifact.report = dataclasses.replace(artifact.report, int8_mac_share=0.5)
        return artifact

    monkeypatch.setattr(compiling, "compiled", half)
    result = cli("compile", program, "-o", "half.qvm", "--min-int8-macs", "0.99", *FILE)
    assert result.exit_code == 1
    problem = r"int8 check not met: 0\.5000 .*0\.99"
    assert re.search(f"quantvm: {problem}", result.stderr)
    assert re.search(f"FAILED: {problem}", result.stdout)
    assert (tmp_path / "half.qvm").is_file()


def test_what_is_left_in_float_is_printed_with_its_reason(cli, half_float):
    result = cli("compile", half_float, "--input-shape", "1,3,4,4", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "Left in float:" in result.stdout
    assert ": there is no int8 kernel for it" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], "option: MODEL: there is no file 'resnet19', and it is no registered model"),
        (["PROGRAM", "--input-shape", "1,3,x"], "expected sizes as 1,3,224,224"),
        (["PROGRAM", "--input-shape", "1,0,3,4"], " --input-shape: got 1,0,3,4"),
        (["PROGRAM", "--engine", "mkldnn", "--min-int8-macs", "99"], "2 wrong options"),
        (["PROGRAM", "-o", "no/such/folder/x.qvm"], "option: --output: the folder no/such/folder does not exist"),
        (["PROGRAM", "-o", "."], "expected the name of a file"),
        (["PROGRAM", "--target", "llvm -mcpu=z80"], "knows no CPU 'z80'"),
        (["PROGRAM", "--threads", "0"], "threads: got 0"),
        (["PROGRAM", "--batch", "3"], "option: --batch: got '3', expected dynamic or static"),
        (["resnet18", "--batch", "static"], "option: --batch: static is of a quantized program of your own"),
        (["garbage.pt"], "garbage.pt is none of the formats known here; expected TorchScript"),
    ],
)
def test_wrong_usage_is_exit_2(cli, program, tmp_path, arguments, message):
    (tmp_path / "garbage.pt").write_text("garbage")
    result = cli("compile", *[str(program) if word == "PROGRAM" else word for word in arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_static_batch_is_that_of_the_input_shape(cli, program, network):
    three = ",".join(map(str, (3, *SHAPE)))
    result = cli("compile", program, "-o", "three.qvm", "--input-shape", three, "--batch", "static", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["inputs"][0]["shape"] == [3, *SHAPE]
    x = image(3, *SHAPE)
    assert torch.equal(quantvm.load("three.qvm")(x), network(x))


def test_open_sizes_of_an_onnx_file_are_those_of_the_input_shape(cli, tmp_path):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, save

    nodes = []
    for x, y in (("x", "a"), ("b", "y")):
        nodes.append(helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{y}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{y}_q", "s", "z"], [y]))
    nodes.insert(2, helper.make_node("Relu", ["a"], ["b"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "H", "W"]) for name in "xy"]
    constants = [helper.make_tensor("s", 1, [], [0.1]), helper.make_tensor("z", 2, [], [128])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "open.onnx")
    result = cli("compile", "open.onnx", "--json")
    print("STDERR", result.stderr)
    assert json.loads(result.stdout)["inputs"][0]["shape"] == [1, 3, None, None]
    result = cli("compile", "open.onnx", "--input-shape", "1,3,6,5", "-o", "open.qvm", "--json")
    assert json.loads(result.stdout)["inputs"][0]["shape"] == [1, 3, 6, 5]
    x = image(1, 3, 6, 5).numpy()
    expected = (np.clip(np.rint(x / np.float32(0.1)), 0, 127) * np.float32(0.1)).astype(np.float32)
    np.testing.assert_array_equal(quantvm.load("open.qvm")(x), expected)


def test_open_sizes_of_an_exported_program_are_its_examples_if_the_batch_is_static(cli, tmp_path):
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    parameters = (0.1, 128, 0, 255, torch.uint8)

    class Program(nn.Module):
        def forward(self, x):
            for _ in range(2):
                x = ops.dequantize_per_tensor(ops.quantize_per_tensor(torch.relu(x), *parameters), *parameters)
            return x

    x = image(2, 3, 6, 8)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4, max=64), 3: torch.export.Dim("w", min=4, max=64)}
    program = torch.export.export(Program(), (x,), dynamic_shapes=(sizes,))
    torch.export.save(program, "open.pt2")
    result = cli("compile", "open.pt2", "--batch", "static", "-o", "open.qvm", "--json")
    assert json.loads(result.stdout)["inputs"][0]["shape"] == [2, 3, 6, 8]
    assert torch.equal(quantvm.load("open.qvm")(x), program.module()(x))


def test_a_registered_model_is_quantized_as_in_the_main_job(cli, tmp_path):
    pytest.importorskip("foolbox", reason="carries the sample images")
    arguments = ("resnet18", "--weights", "random", "--calibration-samples", "2", "-o", "resnet18.qvm", "--json")
    result = cli("compile", *arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["int8_mac_share"] == 1.0
    assert quantvm.load("resnet18.qvm")(np.zeros((2, 3, 224, 224), np.float32)).shape == (2, 1000)
    (entry,) = json.loads(cli("cache", "list", "--json").stdout)["entries"]
    assert entry["inputs"] == ["(n, 3, 224, 224)"]


def test_a_model_is_quantized_by_a_flow_that_it_can_be_quantized_by(cli):
    result = cli("compile", "vit_b_16", "--flow", "eager", "--weights", "random", "--calibration-samples", "1")
    assert result.exit_code == 2
    assert "PyTorch cannot quantize it by the flow eager; use fx or pt2e" in " ".join(result.stderr.split())


def test_a_file_goes_before_a_registered_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CompileConfig("resnet18").is_registered
    (tmp_path / "resnet18").write_text("")
    assert not CompileConfig("resnet18").is_registered


# ------------------------------------------------------------------ the cache


def test_cache_list_and_clear(cli, program, tmp_path):
    empty = cli("cache", "list")
    assert empty.stdout.startswith("0 compiled models, 0 bytes of at most 2.1 GB, in ")
    cli("compile", program, *FILE)
    (tmp_path / "cache" / "compiled" / "broken.qvm").write_text("nothing")
    lines = cli("cache", "list").stdout.splitlines()
    assert lines[0].split()[:2] == ["key", "size"]
    assert "(n, 3, 19, 17)" in "".join(lines)
    assert "damaged" in "".join(lines)
    assert lines[-1].startswith("2 compiled models, ")
    listed = json.loads(cli("cache", "list", "--json").stdout)
    assert listed["total_bytes"] == sum(entry["size_bytes"] for entry in listed["entries"])
    assert cli("cache", "clear").stdout.startswith("removed 2 compiled models, ")
    assert json.loads(cli("cache", "clear", "--json").stdout)["removed"] == 0


def test_cache_list_with_a_wrong_bound_is_exit_2(cli, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE_BYTES", "much")
    result = cli("cache", "list")
    assert result.exit_code == 2
    assert "expected a whole number of bytes" in result.stderr


# ------------------------------------------------------------------ tables


def test_audit_table():
    rows = [
        {"function": "conv2d", "kernel": "conv2d_vnni", "calls": 12, "dot_instructions": {"vpdpbusd": 28}},
        {"function": "softmax", "kernel": None, "calls": 1, "dot_instructions": {"vpmaddwd": 2, "vpdpwssd": 1}},
    ]
    assert audit_table(rows) == [
        "function              kernel       calls  vpdpbusd  other dot instructions",
        "conv2d                conv2d_vnni     12        28",
        "softmax               (of TVM)         1         0  vpmaddwd 2, vpdpwssd 1",
        "total of 2 functions                  13        28  vpdpwssd 1, vpmaddwd 2",
    ]


def test_aligned_columns():
    assert aligned([("a", "b"), ("long", "12")], right=(1,)) == ["a      b", "long  12"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (26_338_702, "26.3 MB"), (2 << 30, "2.1 GB")],
)
def test_sizes(count, text):
    assert bytes_text(count) == text
