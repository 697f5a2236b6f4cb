"""`quantvm report`: what a run folder holds at any time."""

import json

import pytest

from quantvm.errors import ConfigError
from quantvm.jobs.evaluation.reporting import read_run

from .fakes import FakeWorkload, evaluate, scores_of
from .test_resume import Stopped


def test_of_a_finished_run_it_is_the_result(tmp_path):
    result = evaluate(FakeWorkload(), out=tmp_path, flows=("eager", "fx"), numerics=("torch", "integer"))
    found = read_run(tmp_path)
    assert found.run == result.run == json.loads((tmp_path / "run.json").read_text())
    assert found.samples == result.samples


def test_of_an_interrupted_run_it_is_what_was_done(tmp_path):
    evaluate(Stopped(after=10), out=tmp_path, batch_size=3, shard_size=6)
    alpha, beta = read_run(tmp_path).run["models"]
    assert (alpha["status"], alpha["n_images"]) == ("passed", 20)
    assert (beta["status"], beta["n_images"], beta["reason"]) == ("unfinished", 9, "9 of 20 images are done")
    assert beta["title"] == "BETA"
    assert beta["tvm"] == beta["torch"] == beta["fp32"]


def test_of_a_run_under_way_it_is_what_was_written(tmp_path):
    seen = []

    def answer(x_f32):
        if len(seen) < 4:
            seen.append([(row["status"], row["n_images"]) for row in read_run(tmp_path).run["models"]])
        return scores_of(x_f32)

    evaluate(FakeWorkload(models=("alpha",), tvm={"alpha": answer}), out=tmp_path, batch_size=3, shard_size=6)
    assert seen == [[], [], [("unfinished", 6)], [("unfinished", 6)]]


def test_a_folder_without_a_run_is_the_users_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the result of `quantvm run`"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "damage", ['{"schema_version": 1}', '{"schema_version": 1, "model": 3, "by_numerics": 5}', "[]"]
)
def test_damaged_facts_of_a_network_are_told(tmp_path, damage):
    evaluate(FakeWorkload(models=("alpha",)), out=tmp_path)
    (facts,) = tmp_path.glob("networks/*/network.json")
    facts.write_text(damage)
    with pytest.raises(ConfigError, match="are damaged"):
        read_run(tmp_path)
