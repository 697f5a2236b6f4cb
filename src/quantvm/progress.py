"""Progress of long work, shown on stderr: bars on a terminal, plain lines elsewhere.

Stages take a ``Progress`` and report to it; only the CLI decides which one. ``SILENT`` is the library's default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO

IMAGES = "images"
"""The unit of tasks that show images a second."""


class Task(Protocol):
    """A piece of work under way."""

    def advance(self, amount: float = 1) -> None:
        """Records that `amount` more units are done."""

    def tell(self, text: str) -> None:
        """Shows a text beside the amount from now on."""


class Progress(Protocol):
    """Where long work reports to."""

    def task(self, description: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Returns a context manager that yields the running Task; `unit` is "" (a count), "bytes" or `IMAGES`."""

    def note(self, message: str) -> None:
        """Shows one line that stays."""


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        pass

    def tell(self, text: str) -> None:
        pass


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Yields a task that shows nothing."""
        yield _SilentTask()

    def note(self, message: str) -> None:
        """Drops the message."""


SILENT = SilentProgress()


class _PlainTask:
    def __init__(
        self, stream: TextIO, description: str, total: float | None, interval_s: float, unit: str
    ) -> None:  # fmt: skip
        self._stream, self._description, self._total, self._interval_s = stream, description, total, interval_s
        self._unit, self._text = unit, ""
        self._done, self._started_s = 0.0, time.monotonic()
        self._last_s = self._started_s

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now_s = time.monotonic()
        if self._total and now_s - self._last_s >= self._interval_s:
            self._last_s = now_s
            line = f"{self._description}: {100 * self._done / self._total:.0f} %"
            if self._unit == IMAGES:
                line += f", {self._done / (now_s - self._started_s):.1f} images/s"
            print(f"{line}, {self._text}" if self._text else line, file=self._stream, flush=True)

    def tell(self, text: str) -> None:
        self._text = text


class PlainProgress:
    """One line when a task starts, one every `interval_s` seconds, one when it ends; for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 60.0) -> None:
        self._stream, self._interval_s = stream or sys.stderr, interval_s

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Yields the running task and prints its duration at the end."""
        start_s = time.monotonic()
        print(f"{description} ...", file=self._stream, flush=True)
        yield _PlainTask(self._stream, description, total, self._interval_s, unit)
        print(f"{description}: done in {time.monotonic() - start_s:.1f} s", file=self._stream, flush=True)

    def note(self, message: str) -> None:
        """Prints the message on a line of its own."""
        print(message, file=self._stream, flush=True)


class _RichTask:
    def __init__(self, bars: Any, task_id: Any) -> None:
        self._bars, self._task_id = bars, task_id

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._task_id, amount)

    def tell(self, text: str) -> None:
        self._bars.update(self._task_id, told=text)


class RichProgress:
    """Progress bars on a terminal; a finished task leaves one line."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Yields the running task behind a bar."""
        from rich import progress as rp

        amount: rp.ProgressColumn = rp.DownloadColumn() if unit == "bytes" else rp.MofNCompleteColumn()
        columns = (
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            amount,
            rp.TimeRemainingColumn(elapsed_when_finished=True),
            rp.TextColumn("{task.fields[told]}"),
        )
        with rp.Progress(*columns, console=self._console) as bars:
            yield _RichTask(bars, bars.add_task(description, total=total, told=""))

    def note(self, message: str) -> None:
        """Prints the message above any bar."""
        self._console.print(message, highlight=False, markup=False)


class TitledProgress:
    """Puts a title before everything that is shown, such as the name of the current model."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title

    def task(self, description: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Returns the titled task."""
        return self._progress.task(f"{self._title}: {description}", total, unit)

    def note(self, message: str) -> None:
        """Shows the titled message."""
        self._progress.note(f"{self._title}: {message}")


def progress_for_stderr() -> Progress:
    """Returns bars if stderr is a terminal, else plain lines."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
