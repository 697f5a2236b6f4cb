"""What is written for the user, and what is never replaced."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quantvm.errors import ConfigError, OutputError
from quantvm.jobs.compilation.config import CompileConfig
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.latency.config import BenchConfig
from quantvm.jobs.layer_differences.config import DiffConfig
from quantvm.jobs.tuning.tune import TuneConfig
from quantvm.options.option import raise_problems
from quantvm.storage.output_files import file_problem, folder_problem, replacing, write_file

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def device(path):
    """Makes the null device under another name, where that is allowed; else names the real one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        return Path(os.devnull)
    return path


def fifo(path):
    os.mkfifo(path)
    return path


def listening(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    return path


def linked(make):
    def link(path):
        path.symlink_to(make(path.with_name("behind")))
        return path

    return link


def folder(path):
    path.mkdir()
    return path


def loop(path):
    path.symlink_to(path)
    return path


REFUSED = {
    "device": (device, "is a device, and only regular files are replaced"),
    "fifo": (fifo, "is a pipe, and only"),
    "socket": (listening, "is a socket, and only"),
    "folder": (folder, "is a folder, expected the name of a file"),
    "symlink to a device": (linked(device), "is a device"),
    "symlink to a fifo": (linked(fifo), "is a pipe"),
    "loop of symlinks": (loop, "Too many levels of symbolic links"),
    "folder that is missing": (lambda path: path / "none" / "file", "none does not exist"),
    "file as a folder": (lambda path: write(path) / "file", "Not a directory|does not exist"),
    "name that is too long": (lambda path: path.with_name("x" * 300), "too long|longer than 255 bytes"),
    "NUL": (lambda path: path.with_name("a\0b"), "null|embedded"),
}


def write(path):
    path.write_bytes(b"before")
    return path


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_what_is_no_regular_file_is_refused_before_any_work(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = make(tmp_path / "out") if make is not listening else make(Path("out"))
    before = names_in(tmp_path)
    with pytest.raises(OutputError, match=f"cannot write .*({message})"):
        write_file(path, b"after")
    for config in (CompileConfig("resnet18", out=path), TuneConfig(out=path)):
        with pytest.raises(ConfigError, match=rf"(?s)1 wrong option:\n  out: .*({message})"):
            raise_problems(config.problems())
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("name", ["device", "fifo", "symlink to a device", "NUL"])
def test_a_run_folder_is_a_folder(tmp_path, name):
    path = REFUSED[name][0](tmp_path / "out")
    for config in (RunConfig(out=path), BenchConfig(out=path), DiffConfig("resnet18", out=path)):
        with pytest.raises(ConfigError, match=r"(?s)1 wrong option:\n  out: .*(expected a folder|cannot be a name)"):
            raise_problems(config.problems())
    assert folder_problem(path / "deeper") is not None


def write_half(path):
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise RuntimeError("stop")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_whole_with_their_permissions(tmp_path):
    path = write(tmp_path / "file")
    path.chmod(0o640)
    write_file(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(RuntimeError, match="stop"):
        write_half(path)
    with pytest.raises(OutputError, match="No such file"), replacing(path):
        pass  # nothing was written
    assert path.read_bytes() == b"after"
    assert names_in(tmp_path) == ["file"]


def test_of_a_symlink_the_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for target in ("there/old", "there/new"):
        (tmp_path / "link").symlink_to(target)
        if target.endswith("old"):
            write(tmp_path / target)
        write_file(tmp_path / "link", b"after")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / target).read_bytes() == b"after"
        (tmp_path / "link").unlink()
    assert names_in(tmp_path / "there") == ["new", "old"]


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    write_file(tmp_path / ("x" * 255), b"after")
    assert names_in(tmp_path) == ["x" * 255]


@pytest.mark.skipif(IS_ROOT, reason="root may write anywhere")
def test_a_folder_that_may_only_be_read(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "may not be written to" in file_problem(tmp_path / "file")
        assert "may not be written to" in folder_problem(tmp_path / "folder")
    finally:
        tmp_path.chmod(0o700)


def test_the_file_that_a_process_prints_to_is_not_replaced(tmp_path):
    script = "import sys; from quantvm.storage.output_files import file_problem; print(file_problem(sys.argv[1]))"
    path = tmp_path / "printed"
    for name in (str(path), "/dev/stdout"):
        with path.open("w") as stdout:
            subprocess.run([sys.executable, "-c", script, name], stdout=stdout, check=True)
        assert "is what this process prints to" in path.read_text()
