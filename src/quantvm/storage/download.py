"""Downloads files over HTTP into the cache folder: resumed, checked, written atomically.

``quantvm.storage.archive`` extracts archives; ``data`` and ``models`` decide what is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from quantvm.errors import DownloadError
from quantvm.progress import SILENT, Progress
from quantvm.storage.archive import extract_archive
from quantvm.storage.digests import sha256_of
from quantvm.storage.output_files import write_file

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState, Retrying

__all__ = ["UnreachableError", "cache_dir", "download", "exclusive", "extract_archive", "record_of"]

_CONNECT_TIMEOUT_S = 5.0  # without a network an answer must come in seconds, however long a transfer may stall
_FIRST_WAIT_S = 0.5
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TransientError(DownloadError):
    """A failure that may not occur again at the next attempt."""


class UnreachableError(_TransientError):
    """No connection to the server; tried again only once, so that being offline is noticed quickly."""


def cache_dir() -> Path:
    """Returns the folder for all that is downloaded, QUANTVM_CACHE or the user's cache; it may not exist yet."""
    if folder := os.environ.get("QUANTVM_CACHE"):
        return Path(folder).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("quantvm", appauthor=False)


def record_of(destination: Path) -> Path:
    """Returns the file in which the first seen checksum of a download is recorded, if none was published."""
    return destination.with_name(f"{destination.name}.sha256.json")


@contextmanager
def exclusive(path: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Makes the folder of `path` and holds a lock between processes, so that two runs never write the same content.

    The lock is a separate file, ``<path>.lock``, which stays: if it were removed, a third process could lock a new one.
    If the system or the file system has no locks, the block runs without one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise DownloadError(
            f"cannot write to {path.parent}: {error.strerror or error}; choose another cache with QUANTVM_CACHE"
        ) from error
    with lock:
        _wait_for_lock(lock, lambda: progress.note(f"another run is fetching {path.name}; waiting for it"))
        yield


def _wait_for_lock(lock: IO[str], tell: Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with suppress(OSError):  # a network file system without locks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell()
            fcntl.flock(lock, fcntl.LOCK_EX)


def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    progress: Progress = SILENT,
    timeout_s: float = 30.0,
    attempts: int = 4,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Returns `destination` once it holds the whole, checked content of `url`.

    A file that already exists and has the expected checksum is not fetched again. Data are written to
    ``<destination>.partial`` and continue where an earlier attempt or run stopped, as long as the server says that the
    file is still the same. If no `sha256` is given, that of the first download is recorded in
    ``<destination>.sha256.json`` and expected from then on.

    Args:
        url: An http or https address.
        destination: The file to write; its folder is made.
        sha256: The expected digest, or its first digits (as in torchvision's file names), in hexadecimal.
        size_bytes: The exact size, where known.
        progress: Where the transfer is shown.
        timeout_s: The longest time without data from the server.
        attempts: How often to try before giving up.
        sleep: Waits for so many seconds between two attempts.

    Raises:
        UnreachableError: No connection; a DownloadError too.
        DownloadError: An HTTP error, a truncated transfer after all attempts, another checksum or size
            than expected, or no room.
    """
    expected = _Expected(sha256.lower() if sha256 else None, size_bytes, record_of(destination))
    if sha256 and destination.is_file() and not expected.mismatch(destination):
        return destination  # without a lock, so that a cache may be read-only
    with exclusive(destination, progress):
        if _is_present(url, destination, expected, progress):
            return destination
        transfer = _Transfer(url, destination, expected, progress, timeout_s)
        try:
            return _retrying(attempts, progress, sleep)(transfer.attempt)
        except _TransientError as error:
            kept = transfer.partial.stat().st_size if transfer.partial.exists() else 0
            advice = f"; {kept:,} bytes are kept and the next try continues there" if kept else ""
            kind = UnreachableError if isinstance(error, UnreachableError) else DownloadError
            raise kind(f"{error}. Check the network (and HTTPS_PROXY), then try again{advice}") from error


def _retrying(attempts: int, progress: Progress, sleep: Callable[[float], None]) -> Retrying:
    """Returns an object that calls a function again after a _TransientError, each time after a longer wait."""
    import tenacity

    def error_of(state: RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome else None

    def most(state: RetryCallState) -> int:
        return min(attempts, 2) if isinstance(error_of(state), UnreachableError) else attempts

    def tell(state: RetryCallState) -> None:
        wait_s = state.next_action.sleep if state.next_action else 0.0
        progress.note(f"{error_of(state)}; trying again in {wait_s:g} s ({state.attempt_number + 1} of {most(state)})")

    return tenacity.Retrying(
        stop=lambda state: state.attempt_number >= most(state),
        wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT_S, max=30),
        retry=lambda state: isinstance(error_of(state), _TransientError),
        before_sleep=tell,
        sleep=sleep,
        reraise=True,
    )


@dataclass(frozen=True)
class _Expected:
    """What is known about the content before it arrives."""

    sha256: str | None
    size_bytes: int | None
    record: Path

    def recorded(self) -> str | None:
        """Returns the digest recorded at the first download, if there is one."""
        try:
            value = json.loads(self.record.read_text(encoding="utf-8"))["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{self.record} is damaged ({error}); remove it to record the checksum anew") from error
        return str(value)

    def mismatch(self, path: Path) -> str | None:
        """Returns what is wrong with the file, as `got ..., expected ...`, or None."""
        size = path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            return f"got {size:,} bytes, expected {self.size_bytes:,}"
        expected = self.sha256 or self.recorded()
        if expected is None:
            return None
        got = sha256_of(path)
        if got.startswith(expected):
            return None
        known = "" if self.sha256 else f" (seen at first use; if the change is meant, remove {self.record})"
        return f"got sha256 {got}, expected {expected}{known}"

    def record_first_use(self, path: Path, url: str) -> None:
        """Records the digest if none was expected."""
        if self.sha256 is None and not self.record.exists():
            content = {"url": url, "sha256": sha256_of(path), "size_bytes": path.stat().st_size}
            write_json(self.record, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _is_present(url: str, destination: Path, expected: _Expected, progress: Progress) -> bool:
    """Says whether the file already exists, from an earlier download or by hand, and is right."""
    if not destination.is_file():
        return False
    if wrong := expected.mismatch(destination):
        progress.note(f"{destination} is not what it should be: {wrong}; downloading it again")
        return False
    expected.record_first_use(destination, url)
    return True


@dataclass
class _Transfer:
    """One file being downloaded; `attempt` may be called again after a _TransientError."""

    url: str
    destination: Path
    expected: _Expected
    progress: Progress
    timeout_s: float

    @property
    def partial(self) -> Path:
        """The file that data are written to until it is whole."""
        return Path(f"{self.destination}.partial")

    @property
    def _validator_path(self) -> Path:
        return Path(f"{self.destination}.partial.json")

    def attempt(self) -> Path:
        """Fetches what is missing, checks it and moves it into place."""
        import httpx

        try:
            resumed = self._fetch()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise UnreachableError(f"{self.url}: no connection ({error})") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise DownloadError(f"{self.url}: {error}; expected an http or https address of a file") from error
        except httpx.RequestError as error:
            raise _TransientError(f"{self.url}: the transfer broke off ({error or type(error).__name__})") from error
        except OSError as error:
            if isinstance(error, DownloadError):
                raise
            raise DownloadError(f"{self.url}: cannot write {self.partial}: {error.strerror or error}") from error
        return self._finish(resumed)

    def _fetch(self) -> bool:
        """Brings the partial file to its full length; says whether it continued an earlier one."""
        import httpx

        offset, validator = self._resumable()
        headers = {"Accept-Encoding": "identity", "User-Agent": "quantvm"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if tag := validator.get("etag") or validator.get("last_modified"):
                headers["If-Range"] = tag
        timeout = httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, _CONNECT_TIMEOUT_S))
        with (
            httpx.Client(timeout=timeout, follow_redirects=True) as client,
            client.stream("GET", self.url, headers=headers) as response,
        ):
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
                return self._accept_or_drop(offset, response)
            if response.is_error:
                raise self._status_error(response)
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                total = self._checked_total(offset, validator, response)
            else:
                offset, total = 0, self._start(response)
            self._receive(response, offset, total)
        return offset > 0

    def _resumable(self) -> tuple[int, dict[str, Any]]:
        """Returns how many bytes can be kept and what identified the file then; (0, {}) to start over."""
        try:
            validator = json.loads(self._validator_path.read_text(encoding="utf-8"))
            size = self.partial.stat().st_size
        except (OSError, ValueError):
            return 0, {}
        if not isinstance(validator, dict) or validator.get("url") != self.url:
            return 0, {}
        if not any(validator.get(key) for key in ("etag", "last_modified", "size_bytes")):
            return 0, {}
        return size, validator

    def _start(self, response: httpx.Response) -> int | None:
        """Empties the partial file, notes what identifies the content, and returns its size if the server says it."""
        headers, encoded = response.headers, "content-encoding" in response.headers
        length = None if encoded else _integer(headers.get("content-length"))
        etag = headers.get("etag", "")
        validator = {
            "url": self.url,
            "etag": None
            if encoded or etag.startswith("W/")
            else etag or None,  # a weak tag does not promise equal bytes
            "last_modified": None if encoded else headers.get("last-modified"),
            "size_bytes": length,
        }
        expected = self.expected.size_bytes
        if length is not None and expected is not None and length != expected:
            raise DownloadError(f"{self.url}: the server offers {length:,} bytes, expected {expected:,}")
        self.partial.write_bytes(b"")
        write_json(self._validator_path, validator)
        return length

    def _checked_total(self, offset: int, validator: Mapping[str, Any], response: httpx.Response) -> int | None:
        """Returns the whole size that a 206 answer names; drops the partial file if it belongs to another content."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
        known: int | None = validator.get("size_bytes")
        total = (_integer(match[2]) if match else None) or known  # the server may say `*`
        etag = response.headers.get("etag")
        same = (
            match is not None
            and int(match[1]) == offset
            and (not etag or not validator.get("etag") or etag == validator["etag"])
            and known in (None, total)
        )
        if not same:
            self._drop()
            raise _TransientError(f"{self.url}: the file has changed since the transfer began")
        return total

    def _accept_or_drop(self, offset: int, response: httpx.Response) -> bool:
        """Handles 416: the partial file is already whole, or it is longer than the content is now."""
        if response.headers.get("content-range") == f"bytes */{offset}":
            return True
        self._drop()
        raise _TransientError(f"{self.url}: the file has changed since the transfer began")

    def _receive(self, response: httpx.Response, offset: int, total: int | None) -> None:
        free = shutil.disk_usage(self.partial.parent).free
        if total is not None and total - offset > free:
            raise DownloadError(
                f"{self.url}: {total - offset:,} bytes are to come but {self.partial.parent} has room for {free:,}; "
                "free some space or choose another cache with QUANTVM_CACHE"
            )
        size = offset
        with (
            self.partial.open("ab") as file,
            self.progress.task(f"download {self.destination.name}", total=total, unit="bytes") as task,
        ):
            task.advance(offset)
            for chunk in response.iter_bytes():  # without a chunk size: data held back for a chunk could be lost
                file.write(chunk)
                size += len(chunk)
                task.advance(len(chunk))
        if total is not None and size != total:
            if size > total:
                self._drop()
            raise _TransientError(f"{self.url}: got {size:,} bytes, expected {total:,}")

    def _status_error(self, response: httpx.Response) -> DownloadError:
        text = f"{self.url}: the server answered {response.status_code} {response.reason_phrase}".rstrip()
        if response.status_code in _TRANSIENT_STATUS:
            return _TransientError(text)
        return DownloadError(f"{text}; the address may be out of date, or need a login")

    def _finish(self, resumed: bool) -> Path:
        """Moves the partial file into place if it is what was expected."""
        if wrong := self.expected.mismatch(self.partial):
            self._drop()
            message = f"{self.url}: the content is not the expected one: {wrong}"
            if resumed:  # the earlier part may be to blame
                raise _TransientError(message)
            raise DownloadError(f"{message}. Nothing was kept; the file was changed at its source or on the way")
        if self.expected.size_bytes is None and self.partial.stat().st_size == 0:
            self._drop()
            raise _TransientError(f"{self.url}: the server sent an empty file")
        self.expected.record_first_use(self.partial, self.url)
        self.partial.replace(self.destination)
        self._validator_path.unlink(missing_ok=True)
        return self.destination

    def _drop(self) -> None:
        self.partial.unlink(missing_ok=True)
        self._validator_path.unlink(missing_ok=True)


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
