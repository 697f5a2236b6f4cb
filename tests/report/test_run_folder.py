import errno
import json
import os
import re

import pyarrow.parquet as pq
import pytest

from quantvm.errors import ConfigError, OutputError
from quantvm.jobs.evaluation.evaluate import save
from quantvm.jobs.evaluation.schema import RunResult
from quantvm.progress import SILENT
from quantvm.report.run_folder import LoggedProgress, RunFolder, default_run_folder, run_json

from ..jobs.evaluation.rows import run_row

SAMPLE = {
    "model": "alpha",
    "flow": "eager",
    "numerics": "torch",
    "id": "a/0.png",
    "label": 3,
    "fp32_top5": None,
    "torch_top5": [1, 2, 3, 4, 5],
    "tvm_top5": [1, 2, 3, 5, 4],
    "identical": False,
    "max_abs_diff": 0.25,
}


def test_all_files_are_written_and_readable(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    save(folder, RunResult(run_row(), [SAMPLE]))
    folder.close()
    assert json.loads((folder.path / "run.json").read_text()) == run_row()
    assert pq.read_table(folder.path / "samples.parquet").to_pylist() == [SAMPLE]
    assert "# Quantized model accuracy: PyTorch vs TVM" in (folder.path / "report.md").read_text()
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "log.txt",
        "report.md",
        "run.json",
        "samples.parquet",
    ]


def test_no_samples_are_a_table_with_its_columns(tmp_path):
    folder = RunFolder(tmp_path)
    save(folder, RunResult(run_row()))
    folder.close()
    assert pq.read_table(tmp_path / "samples.parquet").column_names == list(SAMPLE)


def test_saving_again_replaces_what_was_there(tmp_path):
    folder = RunFolder(tmp_path)
    save(folder, RunResult(run_row(), [SAMPLE]))
    save(folder, RunResult(run_row(seed=7), [SAMPLE, SAMPLE]))
    folder.close()
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 7
    assert pq.read_table(tmp_path / "samples.parquet").num_rows == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    save(folder, RunResult(run_row()))

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left"):
        save(folder, RunResult(run_row(seed=7)))
    folder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "report.md", "run.json", "samples.parquet"]
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


def test_a_folder_that_cannot_be_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write into"):
        RunFolder(tmp_path / "file" / "run")


def test_default_names_differ_and_hold_the_time():
    first, second = default_run_folder(), default_run_folder()
    assert first != second
    assert re.fullmatch(r"runs/\d{8}-\d{6}-[0-9a-f]{4}", first.as_posix())


def test_not_a_number_is_refused_rather_than_written():
    with pytest.raises(ValueError, match="JSON"):
        run_json(run_row(duration_s=float("nan")))


def test_the_log_has_notes_and_durations(tmp_path):
    folder = RunFolder(tmp_path)
    progress = LoggedProgress(SILENT, folder)
    progress.note("seven bad images")
    with progress.task("calibrate", total=3) as task:
        task.advance()
    folder.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d seven bad images", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d calibrate: \d+\.\d s", lines[1])
