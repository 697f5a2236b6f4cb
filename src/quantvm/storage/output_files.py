"""Writes files for the user: problems are found before any work, and a file appears whole or not at all.

Only regular files are replaced; for a symlink, its target is. Devices, pipes, sockets and folders are refused, and so
is a file that this process prints to.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from quantvm.errors import OutputError
from quantvm.storage.regular_files import kind_of_file

_MOST_NAME_BYTES = 255
_UNFINISHED = re.compile(r"\.tmp\d+-[0-9a-f]{8}$")


def file_problem(path: str | os.PathLike[str]) -> str | None:
    """Returns why a file of that name cannot be written, as a clause; None if no reason is known."""
    try:
        return _file_problem(Path(path))
    except ValueError as error:  # a NUL in the name
        return f"{os.fspath(path)!r} cannot be a name: {error}"
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"


def folder_problem(path: str | os.PathLike[str]) -> str | None:
    """Returns why a folder of that name cannot be made or written into, as a clause; None if no reason is known."""
    try:
        return _folder_problem(Path(path))
    except ValueError as error:
        return f"{os.fspath(path)!r} cannot be a name: {error}"
    except OSError as error:
        return f"{path} cannot be written into: {error.strerror or error}"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the name of a new file, which replaces `path` when the block ends without an error.

    A regular file is replaced as a whole and its permissions stay; for a symlink, its target is replaced. After an
    error everything is as it was.

    Raises:
        OutputError: `path` is something else than a regular file, or cannot be written; also if the block raises an
            OSError.
    """
    problem = file_problem(path)
    if problem is not None:
        raise OutputError(f"cannot write {path}: {problem}")
    target = _target(Path(path))
    unfinished = unfinished_name(target)
    try:
        yield unfinished
        with suppress(FileNotFoundError):
            unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
        unfinished.replace(target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        OutputError: see `replacing`.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files below a folder that processes left when they were killed."""
    for path in folder.rglob("*.tmp*"):
        if _UNFINISHED.search(path.name) and not path.is_symlink():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes a folder for results, and its parents.

    Raises:
        OutputError: it cannot be made, or something else has that name.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {path}: {error.strerror or error}; name another") from error


def _file_problem(path: Path) -> str | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return _new_file_problem(_target(path))
    if stat.S_ISDIR(status.st_mode):
        return f"{path} is a folder, expected the name of a file"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is {kind_of_file(status.st_mode)}, and only regular files are replaced; name another"
    if _is_printed_to(status):
        return f"{path} is what this process prints to; name another"
    return _new_file_problem(_target(path))


def _new_file_problem(target: Path) -> str | None:
    parent = target.parent
    if not parent.is_dir():
        return f"the folder {parent} does not exist"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"the folder {parent} may not be written to"
    if len(os.fsencode(target.name)) > _MOST_NAME_BYTES:
        return f"the name {target.name[:20]}... is longer than {_MOST_NAME_BYTES} bytes"
    return None


def _folder_problem(path: Path) -> str | None:
    if "\0" in str(path):
        raise ValueError("embedded null character")
    if path.is_dir():
        if not os.access(path, os.W_OK | os.X_OK):
            return f"the folder {path} may not be written to"
        return None
    if os.path.lexists(path):
        kind = "a symlink to nothing" if path.is_symlink() and not path.exists() else kind_of_file(path.stat().st_mode)
        return f"{path} is {kind}, expected a folder; name another"
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        return f"{above} is {kind_of_file(above.stat().st_mode)}, expected a folder; name another"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"the folder {above} may not be written to"
    return None


def _target(path: Path) -> Path:
    """Returns the file that a name refers to after following all symlinks, whether it exists or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def unfinished_name(target: Path) -> Path:
    """Returns a new name beside a file or folder that is to be written."""
    ending = f".tmp{os.getpid()}-{uuid4().hex[:8]}"
    name = target.name if len(os.fsencode(target.name + ending)) <= _MOST_NAME_BYTES else ".quantvm"
    return target.with_name(name + ending)


def _is_printed_to(status: os.stat_result) -> bool:
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), status):
                return True
    return False
