"""The folder that a run writes its results into, and its log.

Every file but the log is written under a temporary name and then renamed, so that no reader sees half a file. The log
grows line by line.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from quantvm.errors import ConfigError
from quantvm.progress import Progress, Task
from quantvm.report.schema import HeadRow
from quantvm.storage.output_files import file_problem, remove_unfinished, write_file
from quantvm.storage.scratch import lock_folder


def default_run_folder(parent: Path = Path("runs")) -> Path:
    """Returns a new name `runs/<time>-<id>`; the time is UTC, the id distinguishes runs of the same second."""
    now = datetime.now(timezone.utc)
    return parent / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def json_bytes(row: Any) -> bytes:
    """Returns the content of a JSON file of a run folder; what is no Unicode in names of files is escaped."""
    return (json.dumps(row, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def run_json(run: HeadRow) -> str:
    """Returns the text of run.json, or of bench.json."""
    return json.dumps(run, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class RunFolder:
    """A folder that one run writes its results into, as often as it has new ones.

    It belongs to one process until `close`. Unfinished files of a process that was killed are removed.

    Args:
        path: the folder, which is made if it is not there.
        append: whether the log of an earlier run goes on, or begins anew.

    Raises:
        ConfigError: it cannot be written into, or another process runs in it.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        self._lock = ExitStack()
        log = path / "log.txt"
        try:
            path.mkdir(parents=True, exist_ok=True)
            problem = file_problem(log)
            if problem is not None:
                raise ConfigError(f"out: cannot write into {path}: {problem}")
            if not lock_folder(path, self._lock):
                raise ConfigError(f"out: another process is running in {path}; wait for it, or name another folder")
            remove_unfinished(path)
            self._log = log.open("a" if append else "w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"out: cannot write into {path}: {error.strerror}; name another folder") from error

    def log(self, text: str) -> None:
        """Adds one entry with the time to log.txt, at once; a full disk is ignored, for the results matter more."""
        with suppress(OSError):
            print(f"{datetime.now(timezone.utc):%H:%M:%S} {text}", file=self._log, flush=True)

    def discard(self, *names: str) -> None:
        """Removes the log and these files, and the folder if nothing else is in it: nothing was done in it."""
        with suppress(OSError):
            for name in ("log.txt", *names):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def close(self) -> None:
        """Closes the log, and gives the folder free for other processes."""
        with suppress(OSError):  # the disk may be full
            self._log.close()
        self._lock.close()

    def write(self, name: str, content: bytes) -> None:
        """Writes one file; no reader sees half of it.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(self.path / name, content)


class LoggedProgress:
    """A Progress that also writes to a run folder's log."""

    def __init__(self, progress: Progress, folder: RunFolder) -> None:
        self._progress, self._folder = progress, folder

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Yields the running task; the log has a line for its end, with the duration."""
        started_s = time.monotonic()
        with self._progress.task(description, total, unit) as task:
            yield task
        self._folder.log(f"{description}: {time.monotonic() - started_s:.1f} s")

    def note(self, message: str) -> None:
        """Shows the message and logs it."""
        self._progress.note(message)
        self._folder.log(message)
