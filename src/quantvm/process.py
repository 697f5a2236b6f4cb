"""The process that a command is: its streams, its signals, and how it ends.

Whatever becomes of stdout and stderr, the work goes on and is saved. What could not be printed on stdout ends the
process with a code of its own; messages on stderr may be lost.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from quantvm.report.schema import EXIT_INTERRUPTED, EXIT_MODELS_ERRORED, EXIT_OK, EXIT_OUTPUT, EXIT_USAGE

_received: list[int] = []
"""Signals that asked this process to end."""


class _Stream(io.TextIOWrapper):
    """A text stream that never raises: it keeps the first error, and drops what is written after it."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)
        except ValueError:  # closed when the interpreter ends
            return

    def _fail(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)  # what is still buffered goes there
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command line that ends with SystemExit, and ends this process with its exit code.

    If stdout could not be written, 0 becomes the exit code for failed output. 130 becomes the code of the received
    signal.
    """
    stdout = _prepare_streams()
    for name in ("COLUMNS", "LINES"):  # with values that are no sizes, Rich prints nothing at all
        if not _is_size(os.environ.get(name, "")):
            os.environ.pop(name, None)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    code = _code_of(command) if _has_current_folder() else EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == EXIT_INTERRUPTED and _received:
        code = 128 + _received[0]
    if code == EXIT_OK and stdout.error is not None:
        code = EXIT_OUTPUT
    if stdout.error is not None and stdout.error.errno != errno.EPIPE:
        print(f"quantvm: cannot write the results to stdout: {stdout.error.strerror}", file=sys.stderr, flush=True)
    sys.exit(code)


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) >= _LEAST_SIZE


_LEAST_SIZE = 10


def _has_current_folder() -> bool:
    """Whether relative paths can be resolved; without a current folder PyTorch's MKL also ends the process."""
    try:
        Path.cwd()
    except OSError as error:
        print(f"quantvm: the current folder cannot be used: {error.strerror}; change to another one", file=sys.stderr)
        return False
    return True


def _code_of(command: Callable[[], None]) -> int:
    try:
        command()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else EXIT_OK if end.code is None else EXIT_MODELS_ERRORED
    except KeyboardInterrupt:
        print("quantvm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - the code must not be that of a failed check
        traceback.print_exc()
        return EXIT_MODELS_ERRORED
    return EXIT_OK


def _interrupt(number: int, _: FrameType | None) -> None:
    """Ends the work as Ctrl-C does, with what was done until then saved; the next such signal ends the process."""
    _received.append(number)
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def _prepare_streams() -> _Stream:
    """Replaces stdout and stderr by streams that never raise; returns stdout."""
    for number in range(3):
        if not _is_open(number):  # else the next file that is opened would become this stream
            # writing to a closed stream then fails, as it should
            os.open(os.devnull, os.O_RDONLY)
    stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)
    sys.stdout = stdout
    return stdout


def _stream(number: int, stream: TextIO | None) -> _Stream:
    with suppress(OSError, AttributeError):
        os.set_blocking(number, True)
    file = io.FileIO(number, "w", closefd=False)
    return _Stream(
        io.BufferedWriter(file),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",  # names of files and models may hold what the terminal cannot show
        line_buffering=number == 2 or file.isatty(),
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
