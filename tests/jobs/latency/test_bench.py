"""The chain of a benchmark of latency, with workers that need no process."""

from __future__ import annotations

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantvm.errors import ConfigError, OutputError, UnknownNameError
from quantvm.jobs.latency import bench
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.latency.engine_kinds import ENGINES
from quantvm.jobs.latency.engines import Job
from quantvm.jobs.latency.text import bench_lines

from .bench_fakes import MS, FakeBench, failing, run_bench

EAGER = {name: ms for name, ms in MS.items() if "eager" in ENGINES[name].flows}


def run(fakes=None, **options):
    return run_bench(fakes or FakeBench(), **{"threads": 1, **options})


def test_every_engine_has_a_row_and_tvm_is_compared_with_the_best():
    found = run().bench
    assert [model["name"] for model in found["models"]] == ["alpha", "beta"]
    for model in found["models"]:
        assert list(model["engines"]) == list(EAGER)
        assert {name: row["p50_ms"] for name, row in model["engines"].items()} == EAGER
        assert model["tvm_vs_best"] == pytest.approx(2.5 / 2.0)
    assert found["means"] == [{"batch": 1, "threads": 1, "n_models": 2, "tvm_vs_best": pytest.approx(1.25)}]
    row = found["models"][0]["engines"]["tvm"]
    assert (row["outputs_identical"], row["outputs_total"]) == (10, 10)
    assert (row["build_s"], row["load_s"], row["first_call_ms"]) == (1.0, 0.5, 9.0)
    assert (row["peak_rss_bytes"], row["inference_peak_rss_bytes"]) == (3 * 2**20, 2**20)
    assert row["cosine_to_float"] == pytest.approx(1.0)


def test_bits_are_checked_before_anything_is_timed_and_workers_end():
    fakes = FakeBench()
    run(fakes, models="alpha", batch_sizes=(1, 2))
    operations = [operation for *_, operation, _ in fakes.asked]
    assert operations.index("warm_up") > max(i for i, name in enumerate(operations) if name == "load")
    assert not any(worker.open for worker in fakes.workers)


def test_a_profile_is_made_of_tvm_alone_after_its_batch_size_is_timed():
    fakes = FakeBench()
    found = run(fakes, models="alpha", engines=("tvm", "torch_x86"), batch_sizes=(1, 2), profile=True).bench
    assert [model["batch"] for model in found["models"]] == [1, 2]
    assert [model["profile"]["calls"][0]["macs"] for model in found["models"]] == [6912, 2 * 6912]
    steps = [
        (operation, arguments["batch"], engine if operation == "profile" else None)
        for _, engine, _, operation, arguments in fakes.asked
        if operation in ("measure", "profile")
    ]
    assert [step for step, _ in itertools.groupby(steps)] == [
        ("measure", 1, None), ("profile", 1, "tvm"), ("measure", 2, None), ("profile", 2, "tvm"),
    ]  # fmt: skip
    assert not any(worker.open for worker in fakes.workers)


def test_without_being_asked_for_there_is_no_profile():
    fakes = FakeBench()
    assert run(fakes, models="alpha").bench["models"][0]["profile"] is None
    assert "profile" not in {operation for *_, operation, _ in fakes.asked}


def test_a_profile_that_fails_is_an_error_and_the_times_stay():
    fakes = FakeBench(trouble={"tvm": {"profile": failing()}})
    result = run(fakes, models="alpha", profile=True)
    (model,) = result.bench["models"]
    assert model["profile"] is None
    assert model["engines"]["tvm"]["p50_ms"] == MS["tvm"]
    assert "profile of batch 1: RuntimeError: engine on fire" in model["engines"]["tvm"]["reason"]
    assert result.exit_code == 3


def test_wrong_bits_have_no_profile():
    fakes = FakeBench(trouble={"tvm": {"outputs": lambda y: y + 1}})
    assert run(fakes, models="alpha", profile=True).bench["models"][0]["profile"] is None


def test_a_profile_needs_tvm_among_the_engines():
    with pytest.raises(ConfigError, match="profile: got 'openvino' as engines, expected tvm"):
        run(engines="openvino", profile=True)


def test_a_model_is_quantized_by_a_flow_that_it_can_be_quantized_by(tmp_path):
    from quantvm.jobs.latency.one_model import model_job
    from quantvm.models import get_model

    assert model_job(tmp_path, get_model("resnet18"), BenchConfig()).flow == "eager"
    assert model_job(tmp_path, get_model("resnet18"), BenchConfig(flow="fx")).flow == "fx"
    assert model_job(tmp_path, get_model("vit_b_16"), BenchConfig()).flow == "fx"
    with pytest.raises(ConfigError, match="PyTorch cannot quantize it by the flow eager; use fx"):
        model_job(tmp_path, get_model("vit_b_16"), BenchConfig(flow="eager"))


def test_rounds_alternate_between_engines():
    fakes = FakeBench()
    run(fakes, models="alpha", engines=("tvm", "torch_x86"), rounds=3, seconds=0.1)
    measured = [engine for _, engine, _, operation, _ in fakes.asked if operation == "measure"]
    assert measured == ["tvm", "torch_x86", "torch_x86", "tvm", "tvm", "torch_x86"]


def test_the_reference_is_started_for_the_check_but_not_timed_unless_it_is_asked_for():
    fakes = FakeBench()
    found = run(fakes, models="alpha", engines=("tvm", "openvino"), tvm_engine="x86").bench
    assert list(found["models"][0]["engines"]) == ["tvm", "openvino"]
    assert found["reference"] == "torch_x86"
    assert next(engine for _, engine, _, operation, _ in fakes.asked if operation == "load") == "torch_x86"
    assert "torch_x86" not in {engine for _, engine, _, operation, _ in fakes.asked if operation == "measure"}


def test_a_sweep_has_a_row_for_each_setting():
    found = run(models="alpha", batch_sizes=(1, 8), threads=(1, 2)).bench
    settings = [(model["threads"], model["batch"]) for model in found["models"]]
    assert settings == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert [model["engines"]["tvm"]["p50_ms"] for model in found["models"]] == [2, 16, 1, 8]
    assert found["models"][3]["engines"]["tvm"]["images_per_s"] == pytest.approx(1000)
    assert [(mean["threads"], mean["batch"]) for mean in found["means"]] == settings


def test_wrong_bits_get_no_time_and_exit_1():
    def flip(y_f32):
        y_f32[0, 3] = np.nextafter(y_f32[0, 3], np.float32(9))
        return y_f32

    fakes = FakeBench(trouble={"tvm": {"outputs": flip}})
    result = run(fakes, models="alpha")
    assert result.exit_code == 1
    row = result.bench["models"][0]["engines"]["tvm"]
    assert (row["status"], row["p50_ms"], row["outputs_identical"]) == ("failed", None, 9)
    assert "1 of 10 raw outputs differ from torch_fbgemm's" in row["reason"]
    assert result.bench["models"][0]["tvm_vs_best"] is None
    assert ("tvm", "measure") not in {(engine, operation) for _, engine, _, operation, _ in fakes.asked}
    assert result.bench["models"][0]["engines"]["openvino"]["p50_ms"] == 2.5


def test_a_pt2e_program_is_compared_with_itself_and_with_the_engines_for_it():
    def carry(y_f32):
        y_f32[0, 3] += np.float32(0.01)
        return y_f32

    fakes = FakeBench(trouble={"tvm": {"outputs": carry}})
    result = run(fakes, models="alpha", flow="pt2e")
    assert result.exit_code == 0
    assert result.bench["reference"] == "torch_pt2e"
    (model,) = result.bench["models"]
    assert list(model["engines"]) == ["tvm", "torch_pt2e", "torch_inductor", "onnxruntime", "openvino"]
    assert model["tvm_vs_best"] == pytest.approx(2.5 / 2.0)
    row = model["engines"]["tvm"]
    assert (row["status"], row["p50_ms"], row["outputs_identical"]) == ("measured", 2.0, 9)
    assert 0.999 < row["cosine_to_reference"] < 1
    assert row["compiling_loss"] == pytest.approx(0.01 / (0.25 * 10**0.5), rel=1e-4)
    text = "\n".join(bench_lines(result.bench))
    assert re.search(r"Parity: 9 of TVM's 10 .*torch_pt2e.* 0\.013 times", text)


def test_a_pt2e_program_that_computes_something_else_gets_no_time():
    fakes = FakeBench(trouble={"tvm": {"outputs": lambda y: y[:, ::-1].copy()}})
    result = run(fakes, models="alpha", flow="pt2e")
    assert result.exit_code == 1
    row = result.bench["models"][0]["engines"]["tvm"]
    assert (row["status"], row["p50_ms"]) == ("failed", None)
    assert re.search(r"times as far from torch_pt2e's .*at most 1:", row["reason"])


def test_outputs_that_are_no_numbers_get_no_time():
    result = run(FakeBench(trouble={"tvm": {"outputs": lambda y: y * np.nan}}), models="alpha", flow="pt2e")
    row = result.bench["models"][0]["engines"]["tvm"]
    assert (row["status"], row["compiling_loss"]) == ("failed", None)
    assert "immeasurably many times as far" in row["reason"]


@pytest.mark.parametrize(("share", "status"), [(0.9, "measured"), (1.0, "failed"), (None, "failed")])
def test_a_network_that_is_float_in_part_need_not_have_all_bits(share, status):
    fakes = FakeBench(
        trouble={"tvm": {"outputs": lambda y: y * np.float32(1.0001), "facts": {"int8_mac_share": share}}}
    )
    row = run(fakes, models="alpha").bench["models"][0]["engines"]["tvm"]
    assert (row["status"], row["p50_ms"] is not None) == (status, status == "measured")


def test_a_negative_zero_is_another_bit():
    fakes = FakeBench(
        trouble={"tvm": {"outputs": lambda y: y * np.float32(-0.0)}, "torch_fbgemm": {"outputs": lambda y: y * 0}}
    )
    assert run(fakes, models="alpha").exit_code == 1


@pytest.mark.parametrize("operation", ["build", "load", "warm_up", "measure", "memory"])
def test_an_engine_that_fails_leaves_its_column_empty_and_the_others_go_on(operation):
    result = run(FakeBench(trouble={"openvino": {operation: failing()}}), models="alpha")
    assert result.exit_code == 3
    engines = result.bench["models"][0]["engines"]
    assert engines["openvino"]["status"] == "error"
    assert "engine on fire" in engines["openvino"]["reason"]
    assert {name: row["p50_ms"] for name, row in engines.items() if name != "openvino"} == {
        name: ms for name, ms in EAGER.items() if name != "openvino"
    }


def test_without_the_reference_tvm_gets_no_time():
    result = run(FakeBench(trouble={"torch_fbgemm": {"load": failing()}}), models="alpha")
    assert result.exit_code == 3
    row = result.bench["models"][0]["engines"]["tvm"]
    assert (row["status"], row["p50_ms"]) == ("error", None)
    assert "torch_fbgemm gave none" in row["reason"]


def test_a_missing_engine_is_an_error_only_if_it_was_named():
    missing = {"openvino": "not installed: openvino"}
    result = run(FakeBench(missing=missing), models="alpha")
    assert result.exit_code == 0
    row = result.bench["models"][0]["engines"]["openvino"]
    assert (row["status"], row["reason"], row["p50_ms"]) == ("missing", "not installed: openvino", None)
    assert run(FakeBench(missing=missing), models="alpha", engines=("tvm", "openvino")).exit_code == 3
    with pytest.raises(ConfigError, match="none of the engines can run"):
        run(FakeBench(missing=missing), engines="openvino")


def test_a_model_that_fails_is_listed_and_the_others_go_on():
    result = run(FakeBench(broken_models={"alpha": RuntimeError("weights on fire")}))
    assert result.exit_code == 3
    assert [model["name"] for model in result.bench["models"]] == ["beta"]
    assert result.bench["skipped"][0]["reason"] == "RuntimeError: weights on fire"


def test_temporary_files_that_cannot_be_written_are_exit_4_and_the_others_go_on():
    full = failing("no space", is_output_failure=True)
    result = run(FakeBench(trouble={"openvino": {"build": full}}), models="alpha")
    assert result.exit_code == 4
    assert result.bench["models"][0]["engines"]["tvm"]["status"] == "measured"
    result = run(FakeBench(broken_models={"alpha": OutputError("cannot write")}))
    assert (result.exit_code, result.bench["models"][0]["name"]) == (4, "beta")
    wrong = {"tvm": {"outputs": lambda y: y + 1}, "openvino": {"build": full}}
    assert run(FakeBench(trouble=wrong), models="alpha").exit_code == 1


def test_a_worker_whose_folder_is_full_is_exit_4_whatever_it_raised(monkeypatch):
    monkeypatch.setattr("quantvm.jobs.latency.one_model.is_full", lambda folder: True)
    assert run(FakeBench(trouble={"openvino": {"load": failing()}}), models="alpha").exit_code == 4


@pytest.mark.parametrize("error", [RuntimeError("file write failed"), OSError("9 requested and 0 written")])
def test_what_pytorch_and_numpy_raise_on_a_full_disk_is_an_output_error(monkeypatch, tmp_path, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(bench, "float_module_of", lambda entry, plan: torch.nn.Identity())
    monkeypatch.setattr(bench, "CalibrationInputs", lambda calibration, spec: [np.zeros(1)])
    monkeypatch.setattr(bench, "_input", lambda entry, plan: np.zeros(1, np.float32))
    monkeypatch.setattr("torch.save" if isinstance(error, RuntimeError) else "numpy.save", fail)
    plan = SimpleNamespace(calibration=None)
    job = Job(engine="", model="alpha", folder=str(tmp_path), threads=1)
    with pytest.raises(OutputError, match=f"cannot write to {tmp_path}: {error}; .*TMPDIR"):
        bench.write_model(SimpleNamespace(spec=None), plan, job)


def test_models_without_weights_are_listed():
    result = run(FakeBench(unavailable=("beta",)))
    assert result.exit_code == 0
    assert [(model["name"], model["status"]) for model in result.bench["skipped"]] == [("beta", "skipped")]


def test_an_interruption_keeps_what_was_done_and_ends_the_workers(tmp_path):
    fakes = FakeBench(models=("alpha", "beta", "gamma"), trouble={"torch_x86": {}})
    measure_of_beta = fakes.trouble["torch_x86"]
    original = fakes.write_model

    def write_model(entry, *others):
        if entry.spec.name == "beta":
            measure_of_beta["measure"] = KeyboardInterrupt()
        original(entry, *others)

    fakes.write_model = write_model
    result = run(fakes, out=tmp_path / "out")
    assert result.exit_code == 130
    saved = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [model["name"] for model in saved["models"]] == ["alpha"]
    assert [model["name"] for model in saved["skipped"]] == ["beta", "gamma"]
    assert not any(worker.open for worker in fakes.workers)


def test_the_run_folder_holds_json_report_and_stacks(tmp_path):
    fakes = FakeBench(trouble={"openvino": {"load": failing()}})
    result = run(fakes, models="alpha", out=tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert saved == result.bench
    assert {"schema_version", "command", "config", "environment", "seed", "dataset"} <= set(saved)
    assert saved["config"]["threads"] == [1]
    assert saved["config"]["engines"] == list(EAGER)
    assert saved["load_average"] == [0.25, 0.25]
    assert saved["environment"]["versions"]["onnxruntime"] == "1.2.3"
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Latency of int8 engines")
    assert "the stack" in (tmp_path / "out" / "log.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.json", "log.txt", "report.md"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engines": ("tvm", "tensorrt")}, "engines: got 'tensorrt'"),
        ({"batch_sizes": (1, 0)}, "batch_sizes: got 0"),
        ({"batch_sizes": ()}, "batch_sizes: got none"),
        ({"threads": (-1,)}, "threads: got -1"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"seconds": float("nan")}, "seconds: got nan"),
        ({"seconds": 0}, "seconds: got 0"),
        ({"weights": "torchvision-quantized"}, "expected float weights"),
        ({"tvm_engine": "fbgem"}, "engine: got 'fbgem'"),
        ({"models": ("delta",)}, "unknown model 'delta'"),
        ({"flow": "jit"}, "flow: got 'jit'"),
        ({"flow": "pt2e", "engines": ("tvm", "torch_x86")}, "got 'torch_x86', which run no models that the flow pt2e"),
        ({"engines": "torch_inductor"}, "got 'torch_inductor', which run no models that the flow eager"),
        ({"flow": "pt2e", "scheme": "per-tensor"}, "scheme: got 'per-tensor'"),
    ],
)
def test_wrong_options_are_found_before_any_work(options, text):
    fakes = FakeBench()
    with pytest.raises((ConfigError, UnknownNameError), match=text):
        run(fakes, **options)
    assert fakes.workers == []


def test_options_take_one_value_or_several_and_none_twice():
    config = BenchConfig(models="alpha", engines="tvm", batch_sizes=8, threads=[2, 1, 2], out="there")
    assert (config.models, config.engines, config.batch_sizes, config.threads) == (("alpha",), ("tvm",), (8,), (2, 1))
    assert json.dumps(config.as_json())
