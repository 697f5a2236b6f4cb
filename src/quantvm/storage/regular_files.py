"""Opens files that somebody else may have made, and only if they are regular files.

Opening a pipe could block, and reading a device never end; neither is ever a model, an image or a table.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any

from quantvm.errors import QuantvmError


def checked_path(path: Any, kind: type[QuantvmError], what: str = "the path of a file") -> Path:
    """Returns a path that can be passed to the system.

    Raises:
        QuantvmError: of the kind given: it is no path, is empty, or contains a NUL.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise kind(f"expected {what}, got {type(path).__name__}")
    text = os.fspath(path)
    if not text:
        raise kind(f"expected {what}, got an empty one")
    if "\0" in text:
        raise kind(f"expected {what}, got {text!r}, which holds a NUL")
    return Path(text)


def check_regular(path: Any, kind: type[QuantvmError]) -> Path:
    """Returns the path of a regular file that can be read; the file is opened only to check that.

    Raises:
        QuantvmError: of the kind given, see `open_regular`.
    """
    with open_regular(path, kind):
        return Path(path)


def open_regular(path: Any, kind: type[QuantvmError]) -> IO[bytes]:
    """Returns a regular file, opened for reading in binary; never waits.

    Raises:
        QuantvmError: of the kind given: no such file, a folder, a pipe, a device or a socket, one that may not be read,
            or no path at all.
    """
    path = checked_path(path, kind)
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise kind(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise kind(f"{path} is a folder, expected a file") from error
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise kind(f"{path} is {kind_of_file(mode)}, expected a file")


def kind_of_file(mode: int) -> str:
    """Returns what has such a mode, for messages."""
    kinds = (
        (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    )  # fmt: skip
    return next((name for is_it, name in kinds if is_it(mode)), "a device")
