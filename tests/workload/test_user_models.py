"""Models of the user's own, as a user runs the command line: files, factories, images in folders of any names."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import quantvm
from quantvm.cli import app
from quantvm.errors import ConfigError
from quantvm.runtime.target import Machine
from quantvm.workload.model_words import kind_of
from quantvm.workload.program import Program
from quantvm.workload.runners import FixedBatchRunner
from quantvm.workload.user_models import load_model
from tests.workload.own_models import write_factories, write_images

ROOT = Path(__file__).resolve().parents[2]
NAME = "factories_of_the_user"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with factories, files and images."""
    folder = tmp_path_factory.mktemp("user")
    write_factories(folder, NAME)
    write_images(folder / "images")
    (folder / "raises_at_import.py").write_text("import no_such_package\n")
    (folder / "broken.pt").write_text("nothing")
    (folder / "folder.onnx").mkdir()
    (folder / "cut.pt2").write_bytes(b"PK\x03\x04")
    sys.path.insert(0, str(folder))
    factories = __import__(NAME)
    factories.traced().save(str(folder / "traced.pt"))
    torch.export.save(factories.exported(), str(folder / "dynamic.pt2"))
    torch.export.save(factories.exported_for_three(), str(folder / "three.pt2"))
    yield folder
    sys.path.remove(str(folder))
    del sys.modules[NAME]


@pytest.fixture
def cli(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def run(cli, tmp_path):
    """Returns a function that runs `quantvm run` on the images, anew, and gives back (result, run.json)."""

    def invoke(*options):
        folder = tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        result = cli("run", "--data", "images", "--class-map", "sorted", "--threads", "1", "--out", folder, *options)
        path = folder / "run.json"
        return result, json.loads(path.read_text()) if path.exists() else None

    return invoke


SIZE = ("--input-shape", "1,3,32,32")


# ------------------------------------------------------------------ run


def test_a_factory_and_a_file_of_one_model_get_one_row_each_with_pytorchs_bits(run, tmp_path):
    result, found = run("--model", f"{NAME}:with_inputs", "--model", "traced.pt", *SIZE, "--check-parity", "exact")
    assert result.exit_code == 0, result.output
    factory, file = found["models"]
    assert (factory["name"], file["name"]) == (f"{NAME}:with_inputs", "traced.pt")
    for row in (factory, file):
        assert (row["status"], row["scheme"], row["engine"]) == ("passed", "its-own", "fbgemm")
        assert row["parity"]["raw_outputs_identical"] == row["parity"]["raw_outputs_total"] == 12 * 7
        assert row["int8_mac_share"] == 1.0
        assert (row["fp32"], row["reference"]) == (None, "PyTorch")
        assert row["calibration"] == {"n": 0, "source": "none, the weights bring their own ranges"}
        assert row["preprocessing"]["crop"] == 32
        assert row["preprocessing"]["resize"] == 37
    assert factory["parity"] == file["parity"]
    assert factory["weights"] == {"source": f"factory {NAME}:with_inputs", "sha256": None}
    assert len(file["weights"]["sha256"]) == 64
    assert f"Model name: {NAME}:with_inputs, its own quantization" in result.stdout
    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert [s["label"] for s in samples[:12]] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_float_factory_is_quantized_as_a_registered_model(run):
    result, found = run("--model", f"{NAME}:floating", *SIZE, "--check-parity", "exact", "--scheme", "per-tensor")
    assert result.exit_code == 0, result.output
    (row,) = found["models"]
    assert (row["scheme"], row["calibration"]["n"], row["n_images"]) == ("per-tensor", 12, 12)
    assert row["fp32"] is not None


@pytest.mark.parametrize("model", ["dynamic.pt2", f"{NAME}:exported", "three.pt2"])
def test_exported_programs_are_their_own_reference(run, model):
    result, found = run("--model", model, "--batch-size", "5")
    assert result.exit_code == 0, result.output
    (row,) = found["models"]
    assert (row["engine"], row["numerics"], row["n_images"]) == ("pt2e", "qdq", 12)
    assert row["parity"]["top1_agreement"] == 100
    assert row["parity"]["max_abs_diff"] < 0.01
    assert row["preprocessing"]["crop"] == 32
    assert row["int8_mac_share"] == 1.0


@pytest.fixture(scope="module")
def onnx_file(place):
    """What ONNX Runtime quantized, as the example does it."""
    example = runpy.run_path(str(ROOT / "examples" / "onnx_file.py"))
    before = Path.cwd()
    os.chdir(place)
    try:
        example["main"]()
    finally:
        os.chdir(before)
    return "int8.onnx"


def test_an_onnx_file_is_compared_with_onnx_runtime(run, onnx_file):
    result, found = run("--model", onnx_file, "--check-parity", "lsb:1")
    assert result.exit_code == 0, result.output
    (row,) = found["models"]
    assert (row["engine"], row["numerics"], row["reference"]) == ("onnx", "qdq", "ONNX Runtime")
    assert row["parity"]["top1_agreement"] == 100
    assert row["torch"] is not None
    assert "ONNX Runtime accuracy: Top1 = " in result.stdout
    assert "- int8.onnx (qdq): what is called Torch is ONNX Runtime." in result.stdout


def test_a_tflite_file_takes_images_in_its_own_order(run, tmp_path):
    pytest.importorskip("tflite")
    from tests.frontend.test_tflite import network

    (tmp_path / "net.tflite").write_bytes(network())
    result, found = run("--model", tmp_path / "net.tflite")
    assert result.exit_code == 0, result.output
    (row,) = found["models"]
    assert (row["n_images"], row["preprocessing"]["crop"], row["torch"]) == (12, 8, None)


def test_without_onnx_runtime_only_tvms_accuracy_is_measured(run, onnx_file, monkeypatch, tmp_path):
    expected = run("--model", onnx_file)[1]["models"][0]["tvm"]
    monkeypatch.setattr("quantvm.frontend.onnx.layers.has_onnxruntime", lambda: False)
    result, found = run("--model", onnx_file)
    assert result.exit_code == 0, result.output
    (row,) = found["models"]
    assert (row["status"], row["reference"], row["torch"], row["parity"]) == ("passed", None, None, None)
    assert row["tvm"] == expected
    assert "ONNX Runtime is not installed (pip install onnxruntime), so only TVM's accuracy" in row["reason"]
    assert f"int8.onnx (qdq)|none|none|{expected['top1']:.2f}" in result.stdout
    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert [(s["torch_top5"], s["identical"]) for s in samples] == [(None, None)] * 12
    result, found = run("--model", onnx_file, "--check-parity", "exact", "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "--check-parity: int8.onnx: ONNX Runtime is not installed" in result.stderr


def test_a_registered_model_beside_ones_own(run):
    pytest.importorskip("foolbox", reason="carries the sample images")
    result, found = run(
        "--model", f"resnet18,{NAME}:instance", *SIZE, "--weights", "random", "--num-samples", "2",
        "--calibration-samples", "2", "--check-parity", "exact",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [(row["name"], row["preprocessing"]["crop"]) for row in found["models"]] == [
        ("resnet18", 224), (f"{NAME}:instance", 32),
    ]  # fmt: skip


def test_preprocessing_is_as_asked_and_recorded(run):
    options = ("--resize", "40", "--interpolation", "bicubic", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    model = ("--model", f"{NAME}:quantized")
    result, found = run(*model, "--crop", "32", *options)
    assert result.exit_code == 0, result.output
    assert found["models"][0]["preprocessing"] == {
        "resize": 40, "crop": 32, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    assert found["config"]["mean"] == [0.5] * 3
    other = run(*model, "--crop", "32")[1]
    assert found["models"][0]["parity"]["first_image"] != other["models"][0]["parity"]["first_image"]


def test_numerics_of_a_row_are_those_of_the_model(run):
    result, found = run("--model", "traced.pt", *SIZE, "--numerics", "torch,integer")
    assert result.exit_code == 0, result.output
    assert [row["numerics"] for row in found["models"]] == ["torch", "integer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "none.pt"), "--model: there is no file 'none.pt'; there are broken.pt, traced.pt"),
        (("--model", "no/folder/x.onnx"), "there is no folder 'no/folder'"),
        (("--model", "folder.onnx"), "'folder.onnx' is a folder, expected a file"),
        (("--model", "./images"), "'./images' is a folder"),
        (("--model", "resnet19"), "there is no file 'resnet19', and it is no registered model"),
        (("--model", "broken.pt", *SIZE), "broken.pt is none of the formats known here; expected TorchScript"),
        (("--model", "cut.pt2"), "cut.pt2 is truncated: it begins as a ZIP archive, but has no directory at its end"),
        (("--model", "nowhere:model"), "there is no Python module 'nowhere', neither installed nor in"),
        (("--model", f"{NAME}:none"), f"{NAME} has no 'none'; it has"),
        (("--model", f"{NAME}:answer"), f"{NAME}:answer is of type int, expected a function that returns the model"),
        (("--model", f"{NAME}:of_classes"), "expected a function without arguments, got of_classes(n, hidden=8)"),
        (("--model", f"{NAME}:numbers"), "returned a list, expected an nn.Module"),
        (("--model", f"{NAME}:doubles"), "an example input is a torch.float64 array, expected float32"),
        (("--model", f"{NAME}:features", *SIZE), "returns float32 (1, 3, 32, 32) for an input 1,3,32,32, expected"),
        (("--model", f"{NAME}:two_outputs", *SIZE), "returns tuple for an input 1,3,32,32"),
        (("--model", "traced.pt", "--input-shape", "1,1,32,32"), "takes (1, 1, 32, 32), expected one input of images"),
        (("--model", "traced.pt", "--input-shape", "1,3,32,30"), "takes images of 32 x 30, expected squares"),
        (("--model", "traced.pt", "--crop", "2"), "traced.pt cannot take an input 1,3,2,2:"),
        (("--model", "dynamic.pt2", "--crop", "48"), "dynamic.pt2 takes images of 32 x 32, got a crop of 48"),
        (("--crop", "48", *SIZE), "--crop: got 48, but the input shape is 1,3,32,32"),
        (("--mean", "1,2", "--std", "0,1,1"), "mean: got 1.0,2.0, expected three numbers"),
        (("--resize", "0"), "resize: got 0"),
        (("--mean", "a"), "expected numbers as 0.5,0.5,0.5"),
    ],
)
def test_wrong_words_and_options_are_exit_2_before_any_work(run, options, message):
    result, found = run(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert found is None


def test_a_float_factory_may_bring_its_input(run):
    result, found = run("--model", f"{NAME}:floating_with_input", "--check-parity", "exact")
    assert result.exit_code == 0, result.output
    assert found["models"][0]["preprocessing"]["crop"] == 32


@pytest.mark.parametrize("command", ["run", "compile"])
def test_a_factory_that_raises_is_exit_2_with_its_own_stack(cli, tmp_path, command):
    model = ("compile", f"{NAME}:raises") if command == "compile" else ("run", "--model", f"{NAME}:raises")
    options = ("--data", "images", "--class-map", "sorted", "--out", tmp_path / "out") if command == "run" else ()
    result = cli(*model, *options)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"quantvm: {NAME}:raises: calling it raised KeyError: 'weights' at ")
    assert f'{NAME}.py", line' in result.stderr
    if command == "run":
        assert 'return {}["weights"]' in (tmp_path / "out" / "log.txt").read_text()


def test_code_that_cannot_be_imported_is_told_from_a_wrong_name(cli):
    result = cli("compile", "raises_at_import:model")
    assert result.exit_code == 2
    assert "raises_at_import:model: importing it raised ModuleNotFoundError: No module named 'no_such_package'" in (
        result.stderr
    )


def test_a_float_model_without_stubs_is_quantized_by_the_other_flows(run):
    result, found = run("--model", f"{NAME}:float32", *SIZE, "--flow", "eager,fx")
    assert result.exit_code == 0
    eager, fx = found["models"]
    assert (eager["status"], eager["remedy"]) == ("skipped", "--flow fx or --flow pt2e")
    assert fx["parity"]["raw_outputs_identical"] == fx["parity"]["raw_outputs_total"] > 0


def test_more_classes_of_images_than_of_scores(run, cli, tmp_path):
    write_images(tmp_path / "many", tuple("abcdefgh"), each=1)
    result, found = run("--model", "traced.pt", *SIZE, "--data", tmp_path / "many")
    assert result.exit_code == 2
    assert "many has 8 classes, traced.pt 7; use data of 7 classes" in result.stderr
    assert found is None


# ------------------------------------------------------------------ compile


@pytest.mark.parametrize("model", [f"{NAME}:with_inputs", f"{NAME}:with_arrays", f"{NAME}:traced", "traced.pt"])
def test_compile_writes_what_runs_alike(cli, tmp_path, model):
    out = tmp_path / "model.qvm"
    sized = () if "with" in model else SIZE
    result = cli("compile", model, "-o", out, "--threads", "1", *sized)
    assert result.exit_code == 0, result.output
    factories = sys.modules[NAME]
    x = factories.calibration()
    assert torch.equal(quantvm.load(out)(x), factories.quantized()(x))


def test_compile_quantizes_a_float_factory(cli, tmp_path):
    pytest.importorskip("foolbox", reason="carries the sample images")
    out = tmp_path / "model.qvm"
    result = cli("compile", f"{NAME}:floating", "-o", out, *SIZE, "--calibration-data", "images", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["int8_mac_share"] == 1.0
    assert quantvm.load(out)(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 7)


@pytest.mark.parametrize(("model", "batch"), [("dynamic.pt2", None), ("three.pt2", 3), (f"{NAME}:exported", None)])
def test_compile_takes_exported_programs_without_shapes(cli, tmp_path, model, batch):
    out = tmp_path / "model.qvm"
    result = cli("compile", model, "-o", out)
    assert result.exit_code == 0, result.output
    artifact = quantvm.load(out)
    assert artifact.input_shapes == ((batch, 3, 32, 32),)
    assert (artifact.report.engine, artifact.report.numerics) == ("pt2e", "qdq")


def test_what_fails_on_any_input_is_told_from_a_wrong_shape(cli):
    result = cli("compile", f"{NAME}:beyond_uint8", *SIZE)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"quantvm: {NAME}:beyond_uint8 cannot be run: ")
    assert last.endswith("zero_point 300 is above upper bound")


def test_compile_says_when_a_shape_does_not_fit(cli):
    result = cli("compile", "traced.pt", "--input-shape", "1,5,32,32")
    assert result.exit_code == 2
    assert "traced.pt cannot take an input 1,5,32,32: " in result.stderr
    assert "name the right ones with --input-shape" in result.stderr


# ------------------------------------------------------------------ bench


@pytest.mark.nightly
def test_bench_measures_a_float_factory(cli, tmp_path):
    pytest.importorskip("foolbox", reason="carries the sample images")
    options = ("--engines", "tvm,torch_fbgemm", "--rounds", "1", "--seconds", "0.01", "--threads", "1", "--json")
    result = cli("bench", "--model", f"{NAME}:floating_with_input", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["models"]
    assert row["name"] == f"{NAME}:floating_with_input"
    assert all(row["engines"][name]["p50_ms"] > 0 for name in ("tvm", "torch_fbgemm"))


def test_bench_refuses_what_is_quantized(cli):
    result = cli("bench", "--model", "dynamic.pt2")
    assert result.exit_code == 2
    assert "dynamic.pt2 is quantized already, and every engine quantizes one float model" in result.stderr


# ------------------------------------------------------------------ words


def test_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.bin", "resnet18", "pkg:factory"):
        (tmp_path / name).touch()
        assert kind_of(name) == "file", "a file goes before all else"
    assert kind_of("resnet50") == "registered"
    assert kind_of("a.b_c:d.E") == "factory"
    with pytest.raises(ConfigError, match=r"a factory is written as pkg\.mod:name"):
        kind_of("my-pkg:factory")
    with pytest.raises(ConfigError, match="is a registered model, expected a file or a factory"):
        load_model("resnet50")


def test_a_fixed_batch_is_filled_up():
    class Engine:
        name, seen = "engine", []

        def run(self, x_f32):
            self.seen.append(x_f32[:, 0].tolist())
            return x_f32 + 1

    engine = Engine()
    x = np.arange(5, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(FixedBatchRunner(engine, 3).run(x), x + 1)
    assert engine.seen == [[0, 1, 2], [3, 4, 4]]
    dynamic = Program("m", "onnx", None, ((None, 3, 4, 4),), False, None)
    assert dynamic.on_images(engine) is engine


def test_a_program_says_what_is_missing_to_check_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    onnx, tflite = (Program("m", kind, None, ((1, 3, 4, 4),), False, None) for kind in ("onnx", "tflite"))
    assert onnx.reference is None
    assert "ONNX Runtime is not installed" in onnx.missing_reference
    assert "no reference for TFLite" in tflite.missing_reference
    assert onnx.runner(Machine("native", 1)) is None
