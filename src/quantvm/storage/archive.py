"""Extracts archives into folders: no member may leave the folder, and the folder appears whole or not at all."""

from __future__ import annotations

import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantvm.errors import DownloadError
from quantvm.progress import SILENT, Progress

_MOST_NAMED = 10


class DamagedArchiveError(DownloadError):
    """A damaged archive: extracting it again would fail again."""


@dataclass(frozen=True)
class _Member:
    """A file of an archive; links are resolved to the file that they stand for."""

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]


def extract_archive(archive: Path, folder: Path, progress: Progress = SILENT) -> Path:
    """Returns `folder` once it holds all files of a zip or tar archive; after a failure it does not exist.

    The content decides the format, not the name. Files get default permissions. A link to another file of the archive
    becomes a copy of that file, so no link is ever made.

    Args:
        archive: A zip file, or a tar file, plain or compressed by gzip, bzip2 or xz.
        folder: Is created; must not exist, or must be empty.
        progress: Where the work is shown.

    Raises:
        DamagedArchiveError: The archive is damaged or empty, is neither zip nor tar, or holds a path or a link that
            leads out of the folder (all of them are named).
        DownloadError: Its content does not fit on the disk, or the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(f"{archive}: cannot extract into {folder}, which exists; remove it first")
    temporary = folder.with_name(f".{folder.name}.extracting")
    if temporary.exists():  # left by a run that was killed
        shutil.rmtree(temporary)
    try:
        with _opened(archive) as members:
            _check_room(archive, members, folder)
            temporary.mkdir(parents=True)
            _write_all(members, temporary, progress, f"extract {archive.name}")
        temporary.replace(folder)
    except (DownloadError, MemoryError):
        raise
    except Exception as error:  # zipfile and tarfile raise any kind where a header is damaged
        if isinstance(error, OSError) and error.errno is not None:  # gzip's and bz2's own errors have no number
            raise DownloadError(f"{archive}: cannot extract into {folder}: {error}") from error
        reason = str(error) or type(error).__name__
        raise DamagedArchiveError(f"{archive} is damaged: {reason}; remove it to download it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    if tarfile.is_tarfile(archive):  # asked first: a tar that ends in a zip looks like a zip too
        with tarfile.open(archive) as tar_file:
            yield _tar_members(archive, tar_file)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            yield _zip_members(archive, zip_file)
    else:
        size = archive.stat().st_size
        raise DamagedArchiveError(
            f"{archive} ({size:,} bytes) is neither a zip nor a tar archive; the server may have sent something else "
            "(a login or error page): remove it to download it again"
        )


def safe_name(name: str) -> str | None:
    """Returns a member's path in normal form (`/`, no `.`), or None if it leads out of the folder or names no file."""
    parts = name.replace("\\", "/").split("/")
    kept = [part for part in parts if part not in ("", ".")]
    if parts[0] == "" or ".." in parts or "\0" in name or not kept:
        return None
    if re.match(r"[A-Za-z]:", kept[0]):  # a drive, also in `./C:/x`
        return None
    return "/".join(kept)


def _is_root(name: str) -> bool:
    """Says whether a member is the folder itself, as in `./`."""
    return set(name.replace("\\", "/").split("/")) <= {"", "."} and not name.startswith(("/", "\\"))


def _link_target(name: str, target: str, *, from_root: bool) -> str | None:
    """Returns the member that a link stands for, or None if it leads out of the folder."""
    if not target or target.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", target):
        return None
    base = "" if from_root else posixpath.dirname(name)
    joined = posixpath.normpath(posixpath.join(base, target.replace("\\", "/")))
    return safe_name(joined)


def _zip_members(archive: Path, zip_file: zipfile.ZipFile) -> list[_Member]:
    files: dict[str, _Member] = {}
    links: dict[str, str | None] = {}
    refused: list[str] = []
    for info in zip_file.infolist():
        name = safe_name(info.filename)
        if name is None:
            if not _is_root(info.filename):
                refused.append(f"{info.filename!r} leads out of the folder")
        elif stat.S_ISLNK(info.external_attr >> 16):
            target = zip_file.read(info).decode("utf-8", "replace") if info.file_size < 4096 else ""
            links[name] = _link_target(name, target, from_root=False)
        elif not info.is_dir():
            files[name] = _Member(name, info.file_size, lambda info=info: zip_file.open(info))  # type: ignore[misc]
    return _with_links(archive, files, links, refused)


def _tar_members(archive: Path, tar_file: tarfile.TarFile) -> list[_Member]:
    files: dict[str, _Member] = {}
    links: dict[str, str | None] = {}
    refused: list[str] = []
    for info in tar_file:
        name = safe_name(info.name)
        if name is None:
            if not _is_root(info.name):
                refused.append(f"{info.name!r} leads out of the folder")
        elif info.issym() or info.islnk():
            links[name] = _link_target(name, info.linkname, from_root=info.islnk())
        elif info.isfile():
            files[name] = _Member(name, info.size, lambda info=info: _tar_open(tar_file, info))  # type: ignore[misc]
        elif not info.isdir():
            refused.append(f"{info.name!r} is a device or a pipe")
    return _with_links(archive, files, links, refused)


def _tar_open(tar_file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar_file.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return file


def _with_links(
    archive: Path, files: dict[str, _Member], links: dict[str, str | None], refused: list[str]
) -> list[_Member]:
    """Returns the files, with each link turned into another copy of the file that it leads to."""
    members = list(files.values())
    for name, first in links.items():
        target, seen = first, {name}
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        if target in files:
            members.append(_Member(name, files[target].size_bytes, files[target].open))
        else:
            refused.append(f"{name!r} is a link to no file of the archive")
    if refused:
        more = f" and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
        raise DamagedArchiveError(
            f"{archive} is not safe to extract: {'; '.join(refused[:_MOST_NAMED])}{more}. Nothing was written; "
            "remove it, and do not trust its source"
        )
    if not members:
        raise DamagedArchiveError(f"{archive} holds no files; remove it to download it again")
    return members


def _check_room(archive: Path, members: Iterable[_Member], folder: Path) -> None:
    needed = sum(member.size_bytes for member in members)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise DownloadError(
            f"{archive} unpacks to {needed:,} bytes but {folder.parent} has room for {free:,}; free some space or "
            "choose another cache with QUANTVM_CACHE"
        )


def _write_all(members: list[_Member], folder: Path, progress: Progress, description: str) -> None:
    with progress.task(description, total=len(members)) as task:
        for member in members:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, path.open("wb") as target:
                # If there is one byte more than the header says, stop before it fills the disk.
                size = _copy(source, target, member.size_bytes + 1)
            if size != member.size_bytes:
                raise EOFError(f"{member.name} has {size:,} bytes or more, expected {member.size_bytes:,}")
            task.advance()


def _copy(source: IO[bytes], target: IO[bytes], most_bytes: int) -> int:
    size = 0
    while size < most_bytes and (chunk := source.read(min(1 << 18, most_bytes - size))):
        target.write(chunk)
        size += len(chunk)
    return size
