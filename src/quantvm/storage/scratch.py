"""Temporary files: folders that the next run removes if this one cannot, and files in memory.

A folder in TMPDIR is locked until its owner ends in any way; the next process that makes a folder removes those
without a lock.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quantvm.errors import OutputError

PREFIX = "quantvm-"
_cleaned: set[str] = set()


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yields an empty folder in TMPDIR, which is removed at the end of the block or, after a kill, by the next run.

    Args:
        purpose: a word of its name, such as "bench".

    Raises:
        OutputError: no folder can be made there.
    """
    with ExitStack() as stack:
        try:
            parent = tempfile.gettempdir()
            if parent not in _cleaned:
                _cleaned.add(parent)
                remove_abandoned(Path(parent))
            folder = _new_folder(f"{PREFIX}{purpose}-", parent, stack)
        except OSError as error:
            why = error.strerror or error
            raise OutputError(
                f"cannot make a temporary folder: {why}; name one by the environment variable TMPDIR"
            ) from error
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # while the lock is still held
        yield folder


def room_advice(folder: Path) -> str:
    """Returns the folder that may be full, and what to do, as the end of a sentence."""
    return f"the folder for temporary files is {folder.parent}; name another by the environment variable TMPDIR"


def forbids_programs(folder: Path) -> bool:
    """Whether the folder's file system forbids running code."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):
        return False


def remove_abandoned(parent: Path) -> list[Path]:
    """Removes this user's temporary folders whose owners ended without doing so; returns them."""
    removed = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            with ExitStack() as stack, suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
                if is_own and _lock(Path(entry.path), stack):
                    shutil.rmtree(entry.path, ignore_errors=True)
                    removed.append(Path(entry.path))
    return removed


def _new_folder(prefix: str, parent: str, stack: ExitStack) -> Path:
    """Returns a new folder that is locked until the stack is left, where the file system has locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            if _lock(folder, stack):
                return folder
        except OSError:  # no locks here: no other process can take the folder for abandoned either
            if folder.is_dir():
                return folder
        # another process looked for abandoned folders between the two calls, and removes this one


def lock_folder(folder: Path, stack: ExitStack) -> bool:
    """Locks a folder until the stack is left or the process ends; returns False if another process has the lock.

    Where the file system has no locks, nothing is locked.
    """
    try:
        return _lock(folder, stack)
    except OSError:
        return True


def _lock(folder: Path, stack: ExitStack) -> bool:
    """Locks a folder until the stack is left or the process ends; returns whether it exists and was free.

    Raises:
        OSError: the folder is gone, or its file system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOTSUP, "no locks") from error
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return folder.is_dir()


@contextmanager
def memory_file(name: str) -> Iterator[Path | None]:
    """Yields the name of an empty file in memory, which other processes can open; None if the system has none.

    Writing to it cannot fill a disk. None also if the size of this process's files is limited.

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
    """Returns how many bytes a new file in a folder may have; None if the system does not say."""
    limit = file_size_limit()
    found = [] if limit is None else [limit]
    with suppress(OSError, AttributeError):
        status = os.statvfs(folder)
        found.append(status.f_bavail * status.f_frsize)
    return min(found, default=None)


def is_full(folder: Path) -> bool:
    """Whether a folder has no room for another page of 4 KiB, or a file in it is as large as files may be."""
    room, limit = room_bytes(folder), file_size_limit()
    with suppress(OSError):
        if limit is not None and any(path.stat().st_size >= limit for path in folder.iterdir()):
            return True
    return room is not None and room < 4096


def file_size_limit() -> int | None:
    """Returns the greatest size in bytes of a file of this process; None if there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
