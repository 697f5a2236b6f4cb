import errno
import json
import os
import re
import sys

import pytest

from quantvm.errors import ConfigError, OutputError
from quantvm.jobs.evaluation.evaluate import save
from quantvm.progress import SILENT
from quantvm.report.run_folder import LoggedProgress, RunFolder, default_run_folder, run_json
from quantvm.storage.output_files import unfinished_name

from ..jobs.evaluation.rows import run_row


def test_all_files_are_written_and_readable(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    save(folder, run_row())
    folder.close()
    assert json.loads((folder.path / "run.json").read_text()) == run_row()
    assert "# Quantized model accuracy: PyTorch vs TVM" in (folder.path / "report.md").read_text()
    assert sorted(path.name for path in folder.path.iterdir()) == ["log.txt", "report.md", "run.json"]


def test_saving_again_replaces_what_was_there(tmp_path):
    folder = RunFolder(tmp_path)
    save(folder, run_row())
    save(folder, run_row(seed=7))
    folder.close()
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 7


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    save(folder, run_row())

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left"):
        save(folder, run_row(seed=7))
    folder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "report.md", "run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders")
def test_a_folder_belongs_to_one_process_until_it_is_closed(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="another process is running in"):
        RunFolder(tmp_path)
    folder.close()
    RunFolder(tmp_path).close()


def test_unfinished_files_of_a_killed_process_are_removed_and_others_stay(tmp_path):
    (tmp_path / "units" / "a").mkdir(parents=True)
    unfinished = unfinished_name(tmp_path / "units" / "a" / "00000.parquet")
    unfinished.write_bytes(b"half")
    unfinished_name(tmp_path / "units" / "b").mkdir()
    (tmp_path / "notes.tmp").write_text("the user's")
    RunFolder(tmp_path).close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "log.txt", "notes.tmp", "units"]


def test_the_log_of_an_earlier_run_goes_on_if_asked_for(tmp_path):
    for text, append in (("one", False), ("two", True), ("three", False), ("four", True)):
        folder = RunFolder(tmp_path, append=append)
        folder.log(text)
        folder.close()
    assert [line.split(" ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["three", "four"]


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
