"""Temporary folders of processes that end as they like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantvm.errors import OutputError
from quantvm.storage import scratch

HOLD = (
    "import sys\n"
    "from quantvm.storage.scratch import scratch_folder\n"
    "with scratch_folder('test') as folder:\n"
    "    (folder / 'content').write_text('')\n"
    "    print(folder, flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_what_a_killed_process_left_is_removed_by_the_next(temporary):
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as running:
        folders = [Path(process.stdout.readline().strip()) for process in (killed, running)]
        killed.kill()
        killed.wait()
        (temporary / "quantvm-link").symlink_to(temporary)
        (temporary / "other").mkdir()
        assert scratch.remove_abandoned(temporary) == folders[:1]
        assert not folders[0].exists()
        assert (folders[1] / "content").exists()
        running.stdin.close()
        running.wait()
    assert sorted(path.name for path in temporary.iterdir()) == ["other", "quantvm-link"]


def test_a_folder_is_not_taken_from_a_process_that_has_just_made_it(temporary, monkeypatch):
    make, taken = scratch.tempfile.mkdtemp, []

    def make_and_lose(**options):
        folder = make(**options)
        if len(taken) < 2:
            taken.extend(scratch.remove_abandoned(temporary))
        return folder

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", make_and_lose)
    with scratch.scratch_folder("test") as folder:
        (folder / "content").write_text("")
        assert scratch.remove_abandoned(temporary) == []
        assert (folder / "content").exists()
    assert len(taken) == 2
    assert list(temporary.iterdir()) == []


def test_a_folder_goes_after_an_error(temporary):
    def fail():
        with scratch.scratch_folder("test") as folder:
            (folder / "deep").mkdir()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(temporary.iterdir()) == []


def test_where_no_folder_can_be_made(temporary, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "none"))
    with pytest.raises(OutputError, match="TMPDIR"), scratch.scratch_folder("test"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
def test_files_in_memory_are_read_by_other_processes():
    with scratch.memory_file("test") as path:
        path.write_bytes(b"content")
        done = subprocess.run(["cat", str(path)], capture_output=True, check=True)
        assert done.stdout == b"content"
    assert not path.exists()


def test_a_folder_is_full_without_room_for_a_page_or_with_a_file_that_may_not_grow(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100))
    for room, limit, expected in [
        (4095, None, True), (4096, None, False), (None, None, False), (50_000, 100, True), (50_000, 101, False),
    ]:  # fmt: skip
        monkeypatch.setattr(scratch, "room_bytes", lambda folder, room=room: room)
        monkeypatch.setattr(scratch, "file_size_limit", lambda limit=limit: limit)
        assert scratch.is_full(tmp_path) is expected, (room, limit)
