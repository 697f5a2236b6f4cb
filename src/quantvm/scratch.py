"""Temporary files: folders that the next run removes if this one cannot, and files that lie in memory.

A folder in TMPDIR holds a lock for as long as its owner lives, however the owner ends: what nobody holds any more is
removed by the next process that makes a folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quantvm.errors import OutputError

PREFIX = "quantvm-"
_LOCK = ".owner"
_UNLOCKED_S = 600.0
"""A folder that old without a lock is of a process that ended before it made one."""
_cleaned: set[str] = set()


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yields an empty folder in TMPDIR, which is removed at the end of the block or, after a kill, by the next run.

    Args:
        purpose: a word of its name, as "bench".

    Raises:
        OutputError: no folder can be made there.
    """
    try:
        parent = tempfile.gettempdir()
        if parent not in _cleaned:
            _cleaned.add(parent)
            remove_abandoned(Path(parent))
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"cannot make a temporary folder: {error.strerror or error}; name one by the environment variable TMPDIR"
        ) from error
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def room_advice(folder: Path) -> str:
    """Returns which folder ran out of room, if one did, and the way out, as the end of a sentence."""
    return f"the folder for temporary files is {folder.parent}; name another by the environment variable TMPDIR"


def forbids_programs(folder: Path) -> bool:
    """Whether the system runs no code from the folder's file system."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):
        return False


def remove_abandoned(parent: Path) -> list[Path]:
    """Removes this user's temporary folders whose owners ended without doing so; returns them."""
    removed = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _is_abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
    return removed


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Holds the lock that tells others that the folder is in use; the system lets go of it when this process ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing removes abandoned folders either
        yield
        return
    with ExitStack() as stack:
        with suppress(OSError):  # a full disk, or a file system without locks; the folder then only counts as old
            unfinished = folder / f"{_LOCK}.new"
            lock = stack.enter_context(unfinished.open("x"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.rename(folder / _LOCK)  # nobody sees a lock that is not held yet
        yield


def _is_abandoned(folder: Path) -> bool:
    try:
        import fcntl

        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return time.time() - status.st_mtime > _UNLOCKED_S
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except (OSError, ImportError):  # held, removed meanwhile, or without locks
        return False
    return True


@contextmanager
def memory_file(name: str) -> Iterator[Path | None]:
    """Yields the name of an empty file in memory, which other processes can open; None where the system has none.

    Nothing that is written to it can meet a full disk. None also where the process may only write files of some size.

    Args:
        name: what the system shows for it.
    """
    descriptor = None
    if file_size_limit() is None:
        with suppress(AttributeError, OSError):
            descriptor = os.memfd_create(f"{PREFIX}{name}")
    if descriptor is None:
        yield None
        return
    try:
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        yield path if path.exists() else None
    finally:
        os.close(descriptor)


def room_bytes(folder: Path) -> int | None:
    """Returns how many bytes a new file in a folder may have; None where the system does not say."""
    limit = file_size_limit()
    found = [] if limit is None else [limit]
    with suppress(OSError, AttributeError):
        status = os.statvfs(folder)
        found.append(status.f_bavail * status.f_frsize)
    return min(found, default=None)


def file_size_limit() -> int | None:
    """Returns the greatest size in bytes of a file of this process; None if there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
