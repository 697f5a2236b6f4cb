"""The process that a command is: its streams, its signals, and how it ends.

Whatever becomes of stdout and stderr, the work goes on and is saved. What could not be printed on stdout ends the
process with a code of its own; messages on stderr may be lost.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from quantvm.report.schema import EXIT_INTERRUPTED, EXIT_MODELS_ERRORED, EXIT_OK, EXIT_OUTPUT

_received: list[int] = []
"""Signals that asked this process to end."""


class _Descriptor(io.RawIOBase):
    """A file descriptor of which the first error is kept; what is written after it is dropped.

    Args:
        number: of the descriptor.
        error: of one that was closed when the process began, and is met when something is written.
    """

    def __init__(self, number: int, error: OSError | None = None) -> None:
        self._number, self._closed_error = number, error
        self.error: OSError | None = None

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        """Returns the number of bytes that are done with, all of them after an error."""
        view = memoryview(data)  # type: ignore[arg-type]
        if self.error is None:
            self.error = self._closed_error
        while self.error is None:
            try:
                return os.write(self._number, view)
            except BlockingIOError:  # a pipe of which somebody else asked not to wait for readers
                select.select([], [self._number], [])
            except OSError as error:
                self.error = error
        return view.nbytes


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command line that ends by SystemExit, and ends this process with its code.

    A code of 0 becomes that of failed output where stdout could not be written, 130 that of the signal received.
    """
    stdout = _prepare_streams()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    code = _code_of(command)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if code == EXIT_INTERRUPTED and _received:
        code = 128 + _received[0]
    if code == EXIT_OK and stdout.error is not None:
        code = EXIT_OUTPUT
    if stdout.error is not None and stdout.error.errno != errno.EPIPE:
        print(f"quantvm: cannot write the results to stdout: {stdout.error.strerror}", file=sys.stderr, flush=True)
    sys.exit(code)


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


def _prepare_streams() -> _Descriptor:
    """Replaces stdout and stderr by streams that never raise; returns what is below stdout."""
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:  # or the next file that is opened would be taken for a stream
        os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    described = []
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        error = OSError(errno.EBADF, "it is closed") if number in closed else None
        descriptor = _Descriptor(number, error)
        described.append(descriptor)
        text = io.TextIOWrapper(
            io.BufferedWriter(descriptor),
            encoding=getattr(stream, "encoding", None) or "utf-8",
            errors="backslashreplace",  # names of files and models may hold what the terminal cannot show
            line_buffering=number == 2 or descriptor.isatty(),
        )
        setattr(sys, "stdout" if number == 1 else "stderr", text)
    return described[0]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
