"""Only regular files are opened, and opening never waits."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from quantvm.errors import DataError
from quantvm.storage.regular_files import check_regular, checked_path, kind_of_file, open_regular


def test_a_regular_file_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\x00\x01")
    with open_regular(str(path), DataError) as file:
        assert file.read() == b"\x00\x01"
    assert check_regular(path, DataError) == path


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (make_pipe, "a pipe"),
        (make_socket, "cannot read"),
        (lambda path: path.symlink_to(os.devnull), "a device"),
        (lambda path: None, "no such file"),
    ],
)
def test_nothing_else_is(tmp_path, monkeypatch, make, kind):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(Path("x"))
    with pytest.raises(DataError, match=f"(?s){kind}.*x|x.*{kind}"):
        open_regular(Path("x"), DataError)


@pytest.mark.parametrize(
    ("path", "named"), [(3, "int"), (b"a", "bytes"), ("", "empty"), ("a\0b", "NUL"), (Path(), None)]
)
def test_what_is_a_path(path, named):
    if named is None:
        assert checked_path(path, DataError) == path
        return
    with pytest.raises(DataError, match=named):
        checked_path(path, DataError)


def test_kinds_of_files():
    modes = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    assert [kind_of_file(mode | 0o644).split()[-1] for mode in modes] == [
        "file", "folder", "pipe", "socket", "device", "device",
    ]  # fmt: skip
