import bz2
import io
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvm.errors import DownloadError
from quantvm.progress import SilentProgress
from quantvm.storage import archive as module
from quantvm.storage.archive import DamagedArchiveError, extract_archive, safe_name

FILES = {"set/a.txt": b"first", "set/deep/er/b.bin": bytes(range(256)) * 3000, "empty": b""}


def make_zip(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return path


def make_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


MAKERS = [make_zip, make_tar]


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=MAKERS, ids=["zip", "tar"])
def make(request, tmp_path):
    return lambda *args, **options: request.param(tmp_path / "archive", *args, **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "folder"


def assert_nothing_was_written(folder):
    assert not folder.exists()
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []


class TestGood:
    def test_all_files_are_there(self, make, folder):
        assert extract_archive(make(FILES), folder) == folder
        assert read_all(folder) == FILES
        assert [path.name for path in folder.parent.iterdir()] == ["folder"]

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_the_compression_is_found_from_the_content(self, tmp_path, folder, mode):
        extract_archive(make_tar(tmp_path / "misnamed.zip", FILES, mode=mode), folder)
        assert read_all(folder) == FILES

    def test_a_tar_that_ends_in_a_zip_is_a_tar(self, tmp_path, folder):
        inner = make_zip(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
        extract_archive(make_tar(tmp_path / "t.tar", {"inner.zip": inner}, mode="w"), folder)
        assert read_all(folder) == {"inner.zip": inner}

    def test_an_empty_folder_is_filled(self, make, folder):
        folder.mkdir(parents=True)
        extract_archive(make(FILES), folder)
        assert read_all(folder) == FILES

    def test_entries_for_folders_are_no_files(self, tmp_path, folder):
        with tarfile.open(tmp_path / "t", "w") as archive:
            for name in (".", "./set", "./empty"):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            info = tarfile.TarInfo("./set/x")
            archive.addfile(info, io.BytesIO())
        extract_archive(tmp_path / "t", folder)
        assert read_all(folder) == {"set/x": b""}

    def test_a_link_within_becomes_a_copy(self, make, folder):
        links = {"set/link": "a.txt", "up": "set/deep/../a.txt", "chain": "set/link"}
        extract_archive(make(FILES, links), folder)
        assert read_all(folder) == {**FILES, "set/link": b"first", "up": b"first", "chain": b"first"}
        assert not any(path.is_symlink() for path in folder.rglob("*"))

    def test_a_hard_link_becomes_a_copy(self, tmp_path, folder):
        path = make_tar(tmp_path / "t", {"set/a": b"1"}, mode="w")
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("other/b")
            info.type, info.linkname = tarfile.LNKTYPE, "set/a"
            archive.addfile(info)
        extract_archive(path, folder)
        assert read_all(folder) == {"set/a": b"1", "other/b": b"1"}

    def test_files_are_not_made_executable(self, tmp_path, folder):
        with tarfile.open(tmp_path / "t", "w") as archive:
            info = tarfile.TarInfo("x")
            info.mode = 0o6777
            archive.addfile(info, io.BytesIO())
        extract_archive(tmp_path / "t", folder)
        assert (folder / "x").stat().st_mode & 0o7111 == 0

    def test_progress_counts_the_files(self, make, folder):
        counted = []
        progress = SilentProgress()
        progress.task = lambda description, total=None, unit="": Counting(counted, total)
        extract_archive(make(FILES), folder, progress)
        assert counted == [3, 1, 1, 1]


class Counting:
    def __init__(self, counted, total):
        self.counted = counted
        counted.append(total)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def advance(self, amount=1):
        self.counted.append(amount)


class TestUnsafe:
    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "a/../../x",
            "a/../x",
            "/etc/x",
            "//host/x",
            "C:/x",
            "c:x",
            "./C:/x",
            "..\\x",
            "\\x",
            "a\\..\\..\\x",
            "..",
        ],
    )
    def test_a_path_that_leads_out(self, make, folder, name):
        with pytest.raises(DamagedArchiveError, match="not safe to extract") as caught:
            extract_archive(make({"good": b"1", name: b"evil"}), folder)
        assert repr(name) in str(caught.value)
        assert_nothing_was_written(folder)

    @pytest.mark.parametrize(
        "target", ["/etc/passwd", "../outside", "../../outside", "C:/x", "\\x", "nowhere", "", "link"]
    )
    def test_a_link_that_leads_out_or_nowhere(self, make, folder, target):
        with pytest.raises(DamagedArchiveError, match="'link' is a link to no file of the archive"):
            extract_archive(make({"good": b"1"}, {"link": target}), folder)
        assert_nothing_was_written(folder)

    def test_a_file_behind_a_link_to_a_folder_outside(self, make, folder, tmp_path):
        (tmp_path / "outside").mkdir()
        with pytest.raises(DamagedArchiveError):
            extract_archive(make({"good": b"1", "link/x": b"evil"}, {"link": str(tmp_path / "outside")}), folder)
        assert list((tmp_path / "outside").iterdir()) == []

    def test_links_in_a_circle(self, make, folder):
        with pytest.raises(DamagedArchiveError, match=r"'a'.*'b'"):
            extract_archive(make({"good": b"1"}, {"a": "b", "b": "a"}), folder)

    @pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
    def test_a_device(self, tmp_path, folder, kind):
        with tarfile.open(tmp_path / "t", "w") as archive:
            info = tarfile.TarInfo("dev")
            info.type = kind
            archive.addfile(info)
        with pytest.raises(DamagedArchiveError, match="'dev' is a device or a pipe"):
            extract_archive(tmp_path / "t", folder)

    def test_all_are_named_up_to_ten(self, make, folder):
        with pytest.raises(DamagedArchiveError, match=r"'\.\./0'.*'\.\./9' leads out of the folder and 2 more"):
            extract_archive(make({f"../{i}": b"" for i in range(12)}), folder)

    @given(st.text(st.sampled_from("ab./\\:C\0"), max_size=12))
    def test_a_safe_name_stays_in_the_folder(self, name):
        safe = safe_name(name)
        if safe is not None:
            path = PurePosixPath(safe)
            assert not path.is_absolute()
            assert safe
            assert not {"", ".", ".."} & set(safe.split("/"))
            assert "\\" not in safe
            assert safe_name(safe) == safe

    @given(st.lists(st.text("ab", min_size=1), min_size=1))
    def test_an_ordinary_name_stays_as_it_is(self, parts):
        assert safe_name("/".join(parts)) == "/".join(parts)


class TestDamaged:
    def test_truncated(self, make, folder):
        path = make(FILES)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DamagedArchiveError, match="remove it to download it again"):
            extract_archive(path, folder)
        assert_nothing_was_written(folder)

    def test_a_truncated_plain_tar(self, tmp_path, folder):
        path = make_tar(tmp_path / "t", {"x": bytes(100_000)}, mode="w")
        path.write_bytes(path.read_bytes()[:50_000])
        with pytest.raises(DamagedArchiveError):
            extract_archive(path, folder)
        assert_nothing_was_written(folder)

    def test_a_changed_byte_in_a_zip(self, tmp_path, folder):
        path = make_zip(tmp_path / "z", FILES)
        content = bytearray(path.read_bytes())
        content[content.index(b"first") if b"first" in content else 45] ^= 255
        path.write_bytes(content)
        with pytest.raises(DamagedArchiveError):
            extract_archive(path, folder)
        assert_nothing_was_written(folder)

    def test_a_changed_byte_in_a_bzip2(self, tmp_path, folder):
        content = bytearray(bz2.compress(make_tar(tmp_path / "t", FILES, mode="w").read_bytes()))
        content[len(content) // 2] ^= 255
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(DamagedArchiveError):
            extract_archive(tmp_path / "t", folder)

    @pytest.mark.parametrize("content", [b"", b"<html>please log in</html>"])
    def test_no_archive_at_all(self, tmp_path, folder, content):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DamagedArchiveError, match="neither a zip nor a tar"):
            extract_archive(tmp_path / "x", folder)

    def test_no_files_in_it(self, make, folder):
        with pytest.raises(DamagedArchiveError, match=r"no files|neither"):
            extract_archive(make({}), folder)

    def test_a_file_where_a_folder_must_be(self, make, folder):
        with pytest.raises(DownloadError, match="cannot extract"):
            extract_archive(make({"a": b"", "a/b": b""}), folder)
        assert_nothing_was_written(folder)

    def test_a_missing_archive(self, tmp_path, folder):
        with pytest.raises(DownloadError, match="No such file"):
            extract_archive(tmp_path / "missing", folder)


class TestInterrupted:
    def test_nothing_half_made_is_left(self, make, folder, monkeypatch):
        written = []

        def copy(source, target, most_bytes):
            written.append(target.name)
            if len(written) == 2:
                raise KeyboardInterrupt
            return len(source.read())

        monkeypatch.setattr(module, "_copy", copy)
        with pytest.raises(KeyboardInterrupt):
            extract_archive(make(FILES), folder)
        assert_nothing_was_written(folder)

    def test_what_a_killed_run_left_is_cleared(self, make, folder):
        left = folder.with_name(".folder.extracting")
        left.mkdir(parents=True)
        (left / "stale").write_text("half made")
        extract_archive(make(FILES), folder)
        assert read_all(folder) == FILES
        assert not left.exists()

    def test_a_folder_with_something_in_it_is_left_alone(self, make, folder):
        folder.mkdir(parents=True)
        (folder / "mine").write_text("precious")
        with pytest.raises(DownloadError, match="which exists; remove it first"):
            extract_archive(make(FILES), folder)
        assert read_all(folder) == {"mine": b"precious"}

    def test_no_room(self, make, folder, monkeypatch):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        with pytest.raises(DownloadError, match=r"unpacks to 768,005 bytes but .* has room for 10"):
            extract_archive(make(FILES), folder)
        assert_nothing_was_written(folder)

    def test_a_header_that_lies_about_the_size_is_stopped(self, tmp_path, folder, monkeypatch):
        path = make_zip(tmp_path / "z", {"bomb": bytes(100_000)})
        members = module._zip_members

        def lying(archive, zip_file):
            return [module._Member(item.name, 10, item.open) for item in members(archive, zip_file)]

        monkeypatch.setattr(module, "_zip_members", lying)
        with pytest.raises(DamagedArchiveError, match="bomb has 11 bytes or more, expected 10"):
            extract_archive(path, folder)
