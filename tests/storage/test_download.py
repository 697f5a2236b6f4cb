import hashlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quantvm.errors import DownloadError
from quantvm.progress import SilentProgress
from quantvm.storage import download as module
from quantvm.storage.digests import sha256_of
from quantvm.storage.download import UnreachableError, cache_dir, download, exclusive, record_of

from .loopback import ranged, running_web, status, truncated, whole

CONTENT = bytes(range(256)) * 5000  # several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web():
    with running_web() as web:
        yield web


@pytest.fixture
def waits():
    return []


@pytest.fixture
def fetch(web, tmp_path, waits):
    """Downloads from the test's server; waiting is only written down."""

    def fetch(**options):
        options.setdefault("sha256", SHA256)
        return download(web.url, tmp_path / "cache" / "set.zip", sleep=waits.append, timeout_s=5, **options)

    return fetch


def names(folder: Path) -> set[str]:
    """The files that matter: a lock stays."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


class RecordingProgress(SilentProgress):
    def __init__(self):
        self.notes = []
        self.advanced = []

    def note(self, message):
        self.notes.append(message)

    def task(self, description, total=None, unit=""):
        from contextlib import contextmanager

        @contextmanager
        def run():
            self.advanced.append([total, 0, unit])
            yield self

        return run()

    def advance(self, amount=1):
        self.advanced[-1][1] += amount


class TestWhole:
    def test_writes_the_content_and_leaves_nothing_else(self, web, fetch):
        web.answers = [whole(CONTENT)]
        path = fetch()
        assert path.read_bytes() == CONTENT
        assert names(path.parent) == {"set.zip"}

    def test_asks_for_bytes_that_are_not_compressed(self, web, fetch):
        web.answers = [whole(CONTENT)]
        fetch()
        assert web.requests[0]["Accept-Encoding"] == "identity"
        assert "Range" not in web.requests[0]

    def test_a_content_that_is_compressed_nevertheless_is_unpacked(self, web, fetch):
        import gzip

        web.answers = [whole(gzip.compress(CONTENT), Content_Encoding="gzip")]
        assert fetch().read_bytes() == CONTENT

    def test_without_a_content_length(self, web, fetch):
        web.answers = [whole(CONTENT, Content_Length=None)]
        assert fetch().read_bytes() == CONTENT

    def test_the_first_digits_of_a_checksum_suffice(self, web, fetch):
        web.answers = [whole(CONTENT)]
        assert fetch(sha256=SHA256[:8].upper()).is_file()

    def test_follows_redirects(self, web, fetch):
        def redirect(handler):
            handler.send_response(302)
            handler.send_header("Location", web.url + "?moved")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        web.answers = [redirect, whole(CONTENT)]
        assert fetch().read_bytes() == CONTENT

    def test_progress_counts_every_byte(self, web, fetch):
        progress = RecordingProgress()
        web.answers = [whole(CONTENT)]
        fetch(progress=progress)
        assert progress.advanced == [[len(CONTENT), len(CONTENT), "bytes"]]

    def test_a_right_file_is_not_fetched_again(self, web, fetch):
        web.answers = [whole(CONTENT)]
        fetch()
        assert fetch().is_file()
        assert len(web.requests) == 1

    def test_a_right_file_in_a_folder_that_cannot_be_written_is_used(self, web, fetch, monkeypatch):
        web.answers = [whole(CONTENT)]
        fetch()
        monkeypatch.setattr(module, "exclusive", None)  # a lock would be a file
        assert fetch().is_file()

    def test_a_damaged_file_is_replaced(self, web, fetch):
        progress = RecordingProgress()
        web.default = whole(CONTENT)
        fetch().write_bytes(b"damaged")
        assert fetch(progress=progress).read_bytes() == CONTENT
        assert "downloading it again" in progress.notes[0]


class TestResume:
    def test_a_truncated_transfer_continues_where_it_stopped(self, web, fetch, waits):
        progress = RecordingProgress()
        web.answers = [truncated(CONTENT, 300_000), ranged(CONTENT)]
        assert fetch(progress=progress).read_bytes() == CONTENT
        assert web.requests[1]["Range"] == "bytes=300000-"
        assert web.requests[1]["If-Range"] == '"v1"'
        assert waits == [0.5]
        assert progress.advanced[-1] == [len(CONTENT), len(CONTENT), "bytes"]
        assert "trying again" in progress.notes[0]

    def test_several_truncations_wait_longer_each_time(self, web, fetch, waits):
        web.answers = [truncated(CONTENT, 100), ranged(CONTENT, end=200), ranged(CONTENT, end=300), ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT
        assert [request.get("Range") for request in web.requests] == [None, "bytes=100-", "bytes=200-", "bytes=300-"]
        assert waits == [0.5, 1.0, 2.0]

    def test_a_later_run_continues(self, web, fetch):
        web.answers = [truncated(CONTENT, 1000)]
        with pytest.raises(DownloadError, match="1,000 bytes are kept"):
            fetch(attempts=1)
        web.answers = [ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT
        assert web.requests[-1]["Range"] == "bytes=1000-"

    def test_last_modified_serves_where_there_is_no_etag(self, web, fetch):
        date = "Wed, 21 Oct 2015 07:28:00 GMT"
        options = {"etag": None, "Last-Modified": date}
        web.answers = [truncated(CONTENT, 1000, **options), ranged(CONTENT, **options)]
        assert fetch().read_bytes() == CONTENT
        assert web.requests[1]["If-Range"] == date

    @pytest.mark.parametrize("etag", [None, 'W/"weak"'])
    def test_the_size_alone_serves_where_nothing_else_is_known(self, web, fetch, etag):
        web.answers = [truncated(CONTENT, 1000, etag=etag), ranged(CONTENT, etag=etag)]
        assert fetch().read_bytes() == CONTENT
        assert "If-Range" not in web.requests[1]

    def test_a_server_without_ranges_sends_all_again(self, web, fetch):
        web.answers = [truncated(CONTENT, 1000), whole(CONTENT)]
        assert fetch().read_bytes() == CONTENT

    def test_a_file_that_changed_between_attempts_is_fetched_whole(self, web, fetch):
        old = b"old" * 1000
        web.answers = [truncated(old, 1000, etag='"old"'), ranged(CONTENT, etag='"new"')]
        assert fetch().read_bytes() == CONTENT
        assert web.requests[1]["If-Range"] == '"old"'

    def test_a_changed_file_whose_server_ignores_if_range_is_fetched_whole(self, web, fetch):
        old = bytes(len(CONTENT))

        def careless(handler):
            del handler.headers["If-Range"]
            ranged(CONTENT, etag='"new"')(handler)

        web.answers = [truncated(old, 1000, etag='"old"'), careless, ranged(CONTENT, etag='"new"')]
        assert fetch().read_bytes() == CONTENT
        assert "Range" not in web.requests[2]

    def test_a_server_that_does_not_repeat_the_size(self, web, fetch):
        unsized = {"Content-Range": f"bytes 1000-{len(CONTENT) - 1}/*"}
        web.answers = [truncated(CONTENT, 1000), ranged(CONTENT, end=2000, **unsized), ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT
        assert web.requests[2]["Range"] == "bytes=2000-"

    def test_a_changed_size_is_noticed(self, web, fetch):
        web.answers = [truncated(bytes(5000), 1000, etag=None), ranged(CONTENT, etag=None), whole(CONTENT)]
        assert fetch().read_bytes() == CONTENT
        assert "Range" not in web.requests[2]

    def test_an_earlier_part_that_is_damaged_is_dropped_once(self, web, fetch, tmp_path):
        web.answers = [truncated(CONTENT, 1000)]
        with pytest.raises(DownloadError):
            fetch(attempts=1)
        partial = tmp_path / "cache" / "set.zip.partial"
        partial.write_bytes(bytes(1000))
        web.answers = [ranged(CONTENT), ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT

    def test_a_whole_partial_file_is_only_moved(self, web, fetch, tmp_path):
        web.answers = [truncated(CONTENT, 1000)]
        with pytest.raises(DownloadError):
            fetch(attempts=1)
        (tmp_path / "cache" / "set.zip.partial").write_bytes(CONTENT)
        web.answers = [ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT

    def test_a_partial_file_longer_than_the_content_is_dropped(self, web, fetch, tmp_path):
        web.answers = [truncated(CONTENT, 1000)]
        with pytest.raises(DownloadError):
            fetch(attempts=1)
        (tmp_path / "cache" / "set.zip.partial").write_bytes(CONTENT + b"more")
        web.answers = [ranged(CONTENT), ranged(CONTENT)]
        assert fetch().read_bytes() == CONTENT

    def test_a_partial_file_of_another_address_is_not_continued(self, web, fetch, tmp_path):
        web.answers = [truncated(CONTENT, 1000), ranged(CONTENT)]
        with pytest.raises(DownloadError):
            fetch(attempts=1)
        download(web.url + "?other", tmp_path / "cache" / "set.zip", sha256=SHA256)
        assert "Range" not in web.requests[1]

    @pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff"])
    def test_a_damaged_note_about_the_partial_file_means_starting_over(self, web, fetch, tmp_path, damage):
        web.answers = [truncated(CONTENT, 1000), ranged(CONTENT)]
        with pytest.raises(DownloadError):
            fetch(attempts=1)
        (tmp_path / "cache" / "set.zip.partial.json").write_bytes(damage)
        assert fetch().read_bytes() == CONTENT
        assert "Range" not in web.requests[1]


class TestFailure:
    def test_a_wrong_checksum_leaves_nothing(self, web, fetch, tmp_path, waits):
        web.answers = [whole(b"forged")]
        forged = hashlib.sha256(b"forged").hexdigest()
        with pytest.raises(DownloadError, match=f"got sha256 {forged}, expected {SHA256}") as caught:
            fetch()
        assert web.url in str(caught.value)
        assert names(tmp_path / "cache") == set()
        assert waits == []

    def test_a_wrong_size_is_refused_before_the_content_comes(self, web, fetch, tmp_path):
        web.answers = [whole(CONTENT)]
        with pytest.raises(DownloadError, match="offers 1,280,000 bytes, expected 5"):
            fetch(size_bytes=5)
        assert names(tmp_path / "cache") == set()

    def test_a_wrong_size_is_refused_where_the_server_does_not_say_it(self, web, fetch, tmp_path):
        web.answers = [whole(CONTENT, Content_Length=None)]
        with pytest.raises(DownloadError, match="got 1,280,000 bytes, expected 5"):
            fetch(size_bytes=5)
        assert names(tmp_path / "cache") == set()

    def test_a_missing_file_is_not_asked_for_again(self, web, fetch, waits):
        with pytest.raises(DownloadError, match=r"set\.zip: the server answered 404 Not Found"):
            fetch()
        assert len(web.requests) == 1
        assert waits == []

    @pytest.mark.parametrize("code", [429, 500, 503])
    def test_a_server_in_trouble_is_asked_again(self, web, fetch, waits, code):
        web.answers = [status(code), status(code), whole(CONTENT)]
        assert fetch().read_bytes() == CONTENT
        assert waits == [0.5, 1.0]

    def test_gives_up_after_all_attempts(self, web, fetch, waits):
        web.default = status(503)
        with pytest.raises(DownloadError, match=r"503 Service Unavailable.*try again"):
            fetch(attempts=3)
        assert len(web.requests) == 3
        assert waits == [0.5, 1.0]

    def test_an_empty_answer_is_no_file(self, web, fetch, tmp_path):
        web.default = whole(b"")
        with pytest.raises(DownloadError, match="empty file"):
            fetch(sha256=None)
        assert names(tmp_path / "cache") == set()

    def test_a_refused_connection_is_told_quickly(self, tmp_path, waits):
        with socket.socket() as bound:  # bound but not listening: nobody else gets the port, and nobody answers
            bound.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/x"
            with pytest.raises(UnreachableError, match=r"no connection.*Check the network") as caught:
                download(url, tmp_path / "x", sleep=waits.append)
        assert url in str(caught.value)
        assert waits == [0.5]

    def test_an_answer_that_stalls_is_given_up(self, web, fetch, monkeypatch, tmp_path, waits):
        release = threading.Event()

        def stall(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", "10")
            handler.end_headers()
            release.wait(10)

        web.answers = [stall]
        with pytest.raises(DownloadError, match="timed out"):
            download(web.url, tmp_path / "x", attempts=1, timeout_s=0.05, sleep=waits.append)
        release.set()

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/x", "no address", "http://"])
    def test_an_address_of_another_kind(self, tmp_path, url):
        with pytest.raises(DownloadError):
            download(url, tmp_path / "x", sleep=lambda _: None)

    def test_no_room_on_the_disk(self, web, fetch, monkeypatch):
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
        web.answers = [whole(CONTENT)]
        with pytest.raises(DownloadError, match=r"has room for 10;.*QUANTVM_CACHE"):
            fetch()

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DownloadError, match=r"cannot write to .*QUANTVM_CACHE"):
            download("http://127.0.0.1:1/x", tmp_path / "file" / "x")


class TestRecordAtFirstUse:
    def test_the_first_checksum_is_recorded(self, web, fetch):
        web.answers = [whole(CONTENT)]
        path = fetch(sha256=None)
        assert json.loads(record_of(path).read_text()) == {"url": web.url, "sha256": SHA256, "size_bytes": len(CONTENT)}

    def test_another_content_later_is_an_error(self, web, fetch):
        web.answers = [whole(CONTENT), whole(b"other")]
        path = fetch(sha256=None)
        path.unlink()
        with pytest.raises(DownloadError, match=f"expected {SHA256} .*seen at first use.*remove {record_of(path)}"):
            fetch(sha256=None)
        assert names(path.parent) == {record_of(path).name}

    def test_the_same_content_later_is_right(self, web, fetch):
        web.default = whole(CONTENT)
        fetch(sha256=None).unlink()
        assert fetch(sha256=None).read_bytes() == CONTENT

    def test_a_file_put_there_by_hand_is_recorded(self, web, fetch, tmp_path):
        path = tmp_path / "cache" / "set.zip"
        path.parent.mkdir()
        path.write_bytes(CONTENT)
        fetch(sha256=None)
        assert web.requests == []
        assert json.loads(record_of(path).read_text())["sha256"] == SHA256

    def test_a_published_checksum_beats_the_record(self, web, fetch):
        web.answers = [whole(b"other"), whole(CONTENT)]
        fetch(sha256=None)
        assert fetch().read_bytes() == CONTENT

    def test_a_damaged_record_is_an_error(self, web, fetch):
        web.default = whole(CONTENT)
        path = fetch(sha256=None)
        record_of(path).write_text("{")
        with pytest.raises(DownloadError, match="is damaged"):
            fetch(sha256=None)


class TestBetweenProcesses:
    def test_a_second_run_waits_and_finds_the_file(self, web, fetch, tmp_path):
        progress = RecordingProgress()
        path = tmp_path / "cache" / "set.zip"
        waiting = threading.Event()
        progress.note = lambda message: (progress.notes.append(message), waiting.set())
        with exclusive(path):
            second = threading.Thread(target=lambda: fetch(sha256=None, progress=progress))
            second.start()
            assert waiting.wait(10)
            path.write_bytes(CONTENT)  # what the first run does
        second.join()
        assert "waiting" in progress.notes[0]
        assert web.requests == []


def test_sha256_of(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "x") == SHA256


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.setenv("QUANTVM_CACHE", "~/c")
    assert cache_dir() == Path.home() / "c"
    monkeypatch.delenv("QUANTVM_CACHE")
    assert cache_dir().name == "quantvm"


def test_importing_is_cheap():
    heavy = ("torch", "tvm", "httpx", "PIL")
    code = "import sys, quantvm.data, quantvm.storage.download\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
