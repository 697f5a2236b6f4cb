"""TVM as an engine of the benchmark: what it builds, and what it loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantvm.evaluate.bench_config import BenchConfig
from quantvm.evaluate.bench_model import ModelBench, _Session
from quantvm.evaluate.engines import Job, TvmEngine, torch_file
from tests.evaluate.bench_fakes import FakeBenchStages
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
        job=Job("", "small", "/nowhere", 1), stages=FakeBenchStages(), note=print, log=print,
        built={"tvm": built, "torch_fbgemm": {"artifact_bytes": 1}},
    )  # fmt: skip
    session = _Session(bench, threads=2)
    assert session._job("tvm").deployed is deployed
    assert session._job("torch_fbgemm").deployed is False
