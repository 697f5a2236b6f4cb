"""TVM as an engine of the benchmark: what it builds, and what it loads."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.frontend.exported.importer import load_program
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.latency.engines import Job, TvmEngine, torch_file
from quantvm.jobs.latency.exported_engines import ExportedEngine, InductorEngine
from quantvm.jobs.latency.one_model import ModelBench, _Session
from tests.quantized_modules import SmallNetwork, image, save_traced

SHAPE = (3, 19, 17)


@pytest.fixture(scope="module")
def network():
    torch.backends.quantized.engine = "fbgemm"
    return SmallNetwork()


@pytest.fixture
def job(network, tmp_path):
    save_traced(network, image(1, *SHAPE), torch_file(str(tmp_path), "fbgemm"))
    job = Job(engine="tvm", model="small", folder=str(tmp_path), threads=2, thread_counts=(1, 2))
    np.save(job.input_path, image(2, *SHAPE).numpy())
    return job


def test_a_file_is_built_for_each_thread_count_and_batch_size_and_loaded(job, network, tmp_path):
    facts = TvmEngine(replace(job, batch_sizes=(1, 2))).build()
    names = ["tvm-1-1.qvm", "tvm-1-2.qvm", "tvm-2-1.qvm", "tvm-2-2.qvm"]
    assert sorted(path.name for path in tmp_path.glob("*.qvm")) == names
    assert facts["artifact_bytes"] == (tmp_path / "tvm-1-1.qvm").stat().st_size
    assert facts["int8_mac_share"] == 1.0
    engine = TvmEngine(replace(job, threads=1))
    for batch in (2, 1):
        run, facts = engine.load(batch)
        assert set(facts) == {"load_s"}
        x = image(batch, *SHAPE)
        np.testing.assert_array_equal(run(x.numpy()), network(x).numpy())


def test_without_a_linker_it_compiles_where_it_runs(job, network, tmp_path, monkeypatch):
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    assert TvmEngine(job).build() == {}
    assert list(tmp_path.glob("*.qvm")) == []
    run, facts = TvmEngine(job).load(2)
    assert facts["compile_s"] > 0
    x = image(2, *SHAPE)
    np.testing.assert_array_equal(run(x.numpy()), network(x).numpy())


@pytest.mark.parametrize(("built", "deployed"), [({"artifact_bytes": 1}, True), ({}, False)])
def test_tvm_alone_runs_as_deployed_and_only_from_a_file(built, deployed):
    bench = ModelBench(
        spec=None, weights=None, engines=("tvm", "torch_fbgemm"), missing={}, config=BenchConfig(),
        job=Job("", "small", "/nowhere", 1), note=print, log=print,
        built={"tvm": built, "torch_fbgemm": {"artifact_bytes": 1}},
    )  # fmt: skip
    session = _Session(bench, replace(bench.job, threads=2))
    assert session._job("tvm").deployed is deployed
    assert session._job("torch_fbgemm").deployed is False


@pytest.fixture
def exported_job(tmp_path, monkeypatch):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    network = nn.Sequential(*layers).eval()
    monkeypatch.setattr(Job, "float_model", lambda self: network)
    job = Job(engine="torch_pt2e", model="small", folder=str(tmp_path), threads=1, flow="pt2e")
    np.save(job.input_path, image(2, *SHAPE).numpy())
    np.save(job.calibration_path, image(4, *SHAPE, seed=3).numpy())
    return job


def test_a_pt2e_program_is_written_once_and_run_as_it_stands_and_by_tvm(exported_job):
    reference = ExportedEngine(exported_job)
    assert reference.build()["build_s"] > 0
    assert "build_s" not in ExportedEngine(exported_job).build()
    x_f32 = image(2, *SHAPE).numpy()
    with torch.no_grad():
        expected = load_program(exported_job.program_path).module()(torch.from_numpy(x_f32)).numpy()
    np.testing.assert_array_equal(reference.load(2)[0](x_f32), expected)
    assert TvmEngine(replace(exported_job, batch_sizes=(2,))).build()["int8_mac_share"] == 1.0
    np.testing.assert_allclose(TvmEngine(exported_job).load(2)[0](x_f32), expected, atol=0.05)


@pytest.mark.nightly  # it compiles C++ for twenty seconds
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_inductor_compiles_the_program(exported_job, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    engine = InductorEngine(replace(exported_job, engine="torch_inductor"))
    engine.build()
    run, facts = engine.load(2)
    assert facts["compile_s"] > 0
    x_f32 = image(2, *SHAPE).numpy()
    expected = ExportedEngine(exported_job).load(2)[0](x_f32)
    assert run(x_f32).shape == expected.shape
    assert np.corrcoef(run(x_f32).ravel(), expected.ravel())[0, 1] > 0.9
