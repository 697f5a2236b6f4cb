"""An evaluation that is broken off, and taken up again in the same folder."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from quantvm.data.dataset import CalibrationSet, choose_subset
from quantvm.errors import ConfigError, OutputError
from quantvm.jobs.evaluation.store import PartStore

from .fakes import FakeWorkload, evaluate, scores_of

TIMES = {"duration_s", "started_at", "command", "interrupted"}


def run_json(folder):
    run = json.loads((folder / "run.json").read_text())
    models = [{name: value for name, value in model.items() if name not in TIMES} for model in run["models"]]
    return {name: value for name, value in run.items() if name not in {*TIMES, "config"}} | {"models": models}


def samples(folder):
    return pq.read_table(folder / "samples.parquet")


def n_seen(fakes):
    return sum(len(x_f32) for runner in fakes.runners for x_f32 in runner.seen)


class Stopped(FakeWorkload):
    """An interruption comes when TVM is asked for the n-th time."""

    def __init__(self, *arguments, after, error=KeyboardInterrupt, **options):
        super().__init__(*arguments, **options)
        self.left, self.error = after, error

    def tvm_runner(self, artifact):
        def answer(x_f32):
            if self.left == 0:
                raise self.error
            self.left -= 1
            return scores_of(x_f32)

        return self.runner(answer)


OPTIONS = {"batch_size": 3, "shard_size": 6, "numerics": ("torch", "integer"), "flows": ("eager", "fx")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a whole run, and how many images its runners saw."""
    folder, fakes = tmp_path_factory.mktemp("undisturbed") / "run", FakeWorkload()
    assert evaluate(fakes, out=folder, **OPTIONS).exit_code == 0
    return folder, n_seen(fakes)


@pytest.mark.parametrize("after", [0, 3, 13, 20, 53])
def test_a_run_that_was_interrupted_anywhere_ends_as_an_undisturbed_one(tmp_path, undisturbed, after):
    whole, n_seen_by_whole = undisturbed
    folder = tmp_path / "run"
    assert evaluate(Stopped(after=after), out=folder, **OPTIONS).exit_code == 130
    assert evaluate(Stopped(after=2), resume=folder).exit_code == 130  # and once more
    fakes = FakeWorkload()
    assert evaluate(fakes, resume=folder).exit_code == 0
    assert run_json(folder) == run_json(whole)
    assert samples(folder).equals(samples(whole))
    assert n_seen(fakes) < n_seen_by_whole


def test_what_is_there_is_not_computed_again(tmp_path, undisturbed):
    folder = tmp_path / "run"
    evaluate(FakeWorkload(), out=folder, **OPTIONS)
    fakes = FakeWorkload()
    evaluate(fakes, out=folder, **OPTIONS)  # the same --out does it as well
    assert n_seen(fakes) == 0
    assert run_json(folder) == run_json(undisturbed[0])


class Choice(FakeWorkload):
    """`num_samples` of 20 images, as the real data set chooses them, calibrated on others."""

    def load_dataset(self, data, *, num_samples, **options):
        found = super().load_dataset(data, num_samples=num_samples, **options)
        chosen = choose_subset(found.samples, num_samples, options["seed"])
        return dataclasses.replace(found, samples=chosen)

    def load_calibration(self, data, calibration_data, *, evaluation, **options):
        return CalibrationSet((Path("/nowhere/train.png"),), "the train part")


def test_a_run_grows_by_models_and_images(tmp_path):
    folder, options = tmp_path / "run", {"batch_size": 2, "shard_size": 4}
    evaluate(Choice(), models=("alpha",), num_samples=10, out=folder, **options)
    fakes = Choice()
    evaluate(fakes, resume=folder, models=("alpha", "beta"), num_samples=20)
    evaluate(Choice(), models=("alpha", "beta"), num_samples=20, out=tmp_path / "whole", **options)
    assert run_json(folder) == run_json(tmp_path / "whole")
    assert samples(folder).equals(samples(tmp_path / "whole"))
    assert n_seen(fakes) == 3 * (20 - 10) + 3 * 20


@pytest.mark.parametrize(("before", "after"), [(10, 20), (20, 10), (7, 13)])
def test_batches_are_those_of_a_run_of_all_images(tmp_path, before, after):
    class BatchDependent(Choice):
        """Outputs that depend on the size of the batch, as some engines' bits do."""

        def __init__(self):
            super().__init__(models=("alpha",))
            self.torch = lambda x_f32: scores_of(x_f32) + len(x_f32)

    folder, options = tmp_path / "run", {"batch_size": 4, "shard_size": 8}
    evaluate(BatchDependent(), num_samples=before, out=folder, **options)
    evaluate(BatchDependent(), num_samples=after, resume=folder)
    evaluate(BatchDependent(), num_samples=after, out=tmp_path / "whole", **options)
    assert run_json(folder) == run_json(tmp_path / "whole")
    assert run_json(folder)["models"][0]["parity"]["first_image"]["torch_top5_raw"]


def test_the_float_model_runs_on_some_images_or_on_none(tmp_path):
    folder = tmp_path / "run"
    rows = []
    for fp32 in ("none", "5", "all"):
        fakes = FakeWorkload(models=("alpha",))
        (row,) = evaluate(fakes, out=folder, fp32=fp32, batch_size=2, shard_size=4).run["models"]
        rows.append((row["n_fp32_images"], row["fp32"] is None, n_seen(fakes)))
    assert rows == [(0, True, 40), (6, False, 6), (20, False, 14)]


def test_options_that_decide_numbers_must_stay_and_all_that_differ_are_named(tmp_path):
    folder = tmp_path / "run"
    evaluate(FakeWorkload(), out=folder, batch_size=4)
    with pytest.raises(ConfigError, match=r"batch_size is 4 there and 5 now; shard_size is 512 there and 20 now"):
        evaluate(FakeWorkload(), out=folder, batch_size=5, shard_size=20)
    assert evaluate(FakeWorkload(), out=folder, batch_size=4, min_top1=99).exit_code == 1  # a check may change


def test_another_network_is_computed_anew(tmp_path):
    class Other(FakeWorkload):
        def compile(self, program, numerics):
            artifact = super().compile(program, numerics)
            artifact.key += " of other weights"
            return artifact

    evaluate(FakeWorkload(models=("alpha",)), out=tmp_path, batch_size=4)
    fakes = Other(models=("alpha",), tvm={"alpha": lambda x: scores_of(x) + 1})
    (row,) = evaluate(fakes, out=tmp_path, batch_size=4).run["models"]
    assert row["parity"]["images_identical"] == 0


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nonsense", None])
def test_a_part_that_is_damaged_or_gone_is_computed_again(tmp_path, damage):
    options = {"batch_size": 2, "shard_size": 4}
    evaluate(FakeWorkload(models=("alpha",)), out=tmp_path, **options)
    before = run_json(tmp_path)
    part = tmp_path / "units" / "alpha.eager.torch" / "00001.parquet"
    part.unlink() if damage is None else part.write_bytes(damage)
    fakes = FakeWorkload(models=("alpha",))
    evaluate(fakes, out=tmp_path, **options)
    assert n_seen(fakes) == 2 * 4  # PyTorch's and TVM's, of one shard
    assert run_json(tmp_path) == before


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(tmp_path, monkeypatch):
    folder, options = tmp_path / "run", {"batch_size": 2, "shard_size": 4}
    real, left = PartStore.add, [4]

    def add(store, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OutputError("cannot write: No space left on device")
        real(store, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "add", add)
        with pytest.raises(OutputError, match="No space left"):
            evaluate(FakeWorkload(models=("alpha",)), out=folder, **options)
    fakes = FakeWorkload(models=("alpha",))
    assert evaluate(fakes, resume=folder).exit_code == 0
    assert n_seen(fakes) == 3 * (20 - 8)


def test_a_folder_without_a_run_cannot_be_taken_up(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        evaluate(FakeWorkload(), resume=tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        evaluate(FakeWorkload(), resume=tmp_path)
    with pytest.raises(ConfigError, match="leave out --out"):
        evaluate(FakeWorkload(), resume=tmp_path, out=tmp_path / "other")
