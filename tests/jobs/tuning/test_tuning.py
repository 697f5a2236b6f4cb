"""The search for schedules as a user runs it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from quantvm.cli import app
from quantvm.compiler import schedule_search as tuning
from quantvm.compiler.schedule_files import target_cpu, user_schedules
from quantvm.errors import ConfigError
from quantvm.jobs.tuning.tune import TuneConfig, tune_schedules
from quantvm.kernels.schedule.schedule import Schedule
from quantvm.kernels.schedule.schedules import ScheduleFile, ScheduleRecord, read_schedules, write_schedules
from quantvm.tvm_compat import native_target
from tests.quantized_modules import SmallNetwork, image, save_traced
from tests.workload.own_models import write_factories

SHAPE = "1,3,17,19"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path):
    """A saved network."""
    return str(save_traced(SmallNetwork(), image(1, 3, 17, 19), tmp_path / "small.pt"))


@pytest.fixture
def mcpu():
    return target_cpu(native_target())


@pytest.fixture
def found(monkeypatch):
    """Makes the search find, without measuring, that the simplest schedule is twice as fast."""

    def tune(work, target, *, progress):
        for item in work:
            yield ScheduleRecord(item, Schedule(1, 1, 1, 1), 50.0, 100.0)

    monkeypatch.setattr(tuning, "tune", tune)
    return tune


def command(*arguments):
    return CliRunner().invoke(app, ["tune", *arguments])


def test_a_file_is_searched_and_the_users_own_records_written(model, mcpu):
    result = command(model, "--input-shape", SHAPE, "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["file"] == str(user_schedules(mcpu))
    assert row["searched"] == row["asked"] == len(row["found"]) > 1
    assert row["mcpu"] == mcpu
    kept = read_schedules(user_schedules(mcpu))
    assert len(kept.records) == row["kept"] == row["gained"]
    assert {"cpu", "quantvm", "tvm"} <= kept.measured_on.keys()


@pytest.mark.parametrize("word", ["nets:exported", "nets:with_inputs", "nets:floating_with_input", "program.pt2"])
def test_any_model_that_can_be_compiled_is_searched(word, found, tmp_path, monkeypatch):
    write_factories(tmp_path, "nets")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    if word.endswith(".pt2"):
        torch.export.save(importlib.import_module("nets").exported(), tmp_path / word)
    result = command(word, "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["asked"] == 2, "both convolutions"


def test_the_text_names_what_gained(model, found, mcpu, tmp_path):
    result = command(model, "--input-shape", SHAPE, "--threads", "1,2", "-o", "own.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["convolution", "dot", "threads", "model", "µs", "tile", "µs", "gain"]
    row = next(line for line in lines if line.startswith("17×19×3 → 16, 3×3 stride 2"))
    assert row.split()[-4:] == ["100.0", "1×1", "50.0", "2.00×"]
    assert "all together they are 2.000× as fast" in result.stdout
    records = read_schedules(tmp_path / "own.json").records
    assert {record.work.threads for record in records} == {1, 2}
    assert f"Written: own.json ({len(records)} records)" in result.stdout


def test_records_of_other_convolutions_stay(model, found, mcpu):
    shape = tuple(map(int, SHAPE.split(",")))
    config = TuneConfig(models=(model,), input_shapes=(shape,), threads=(1,))
    n = tune_schedules(config).row["kept"]
    (first, *_) = read_schedules(user_schedules(mcpu)).records
    other = replace(first, work=replace(first.work, threads=7))
    write_schedules(user_schedules(mcpu), ScheduleFile(mcpu, {}, (other,)))
    assert tune_schedules(config).row["kept"] == n + 1


def test_what_was_found_before_an_interruption_is_written(model, found, mcpu, monkeypatch):
    def interrupted(work, target, *, progress):
        yield next(found(work, target, progress=progress))
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune", interrupted)
    result = command(model, "--input-shape", SHAPE, "--threads", "1")
    assert result.exit_code == 130
    assert "then interrupted" in result.stdout
    assert len(read_schedules(user_schedules(mcpu)).records) == 1


def test_a_file_of_another_processor_is_not_touched(model, found, tmp_path):
    write_schedules(tmp_path / "own.json", ScheduleFile("pentium", {}, ()))
    before = (tmp_path / "own.json").read_bytes()
    result = command(model, "--input-shape", SHAPE, "-o", "own.json")
    assert result.exit_code == 2
    assert "holds schedules of pentium" in result.stderr
    assert (tmp_path / "own.json").read_bytes() == before


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ConfigError, match="4 wrong options") as error:
        tune_schedules(TuneConfig(models=("resnet-18", "resnet18"), input_shapes=((0,),), threads=(0,), out=Path()))
    for text in (
        "no file 'resnet-18'",
        "Did you mean 'resnet18'",
        "input_shape: got 0",
        "threads: got 0",
        "is a folder",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("target", "message"), [("llvm -mtriple=x86_64-linux-gnu", "names no CPU"), ("llvm -mcpu=no", "knows no CPU")]
)
def test_targets_without_records(target, message):
    result = command("resnet18", "--target", target)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_target_that_this_machine_cannot_run():
    result = command("resnet18", "--target", "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76")
    assert result.exit_code == 2
    assert "needs a processor of kind aarch64" in result.stderr
    assert not user_schedules("cortex-a76").exists()
