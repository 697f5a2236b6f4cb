"""Whatever a path is, and whatever stands where one should: a clear error at once, of what reads files of others."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import quantvm
from quantvm.data.preprocess import load_rgb
from quantvm.errors import ModelImportError, QuantvmError, stage
from quantvm.kernels.schedule.schedules import read_schedules

SECONDS = 20


def _readers() -> dict[str, Callable[[Any], Any]]:
    from quantvm.frontend import entry
    from quantvm.frontend.exported import importer as exported
    from quantvm.frontend.onnx import model as onnx_model
    from quantvm.frontend.tflite import model as tflite_model
    from quantvm.frontend.torchscript import importer as torchscript

    example = [__import__("numpy").zeros((1, 3, 4, 4), "float32")]
    return {
        "quantvm.load": quantvm.load,
        "quantvm.compile": lambda path: quantvm.compile(path, example),
        "import_model": entry.import_model,
        "from_torch": lambda path: torchscript.from_torch(path, example),
        "from_exported_program": exported.from_exported_program,
        "from_onnx": onnx_model.from_onnx,
        "from_tflite": tflite_model.from_tflite,
    }


@pytest.fixture(scope="module")
def readers() -> dict[str, Callable[[Any], Any]]:
    return _readers()


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Whoever waits for a pipe is woken."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"waited for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


NAMES = [
    "quantvm.load",
    "quantvm.compile",
    "import_model",
    "from_torch",
    "from_exported_program",
    "from_onnx",
    "from_tflite",
]


def _paths(tmp_path: Path) -> dict[str, Any]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/odd-\xff\xfe.pt")
    Path(odd).write_bytes(b"PK\3\4 this is no archive")
    return {
        "pipe": tmp_path / "pipe",
        "device": "/dev/zero",
        "folder": tmp_path,
        "empty": str(tmp_path / "empty"),
        "nothing there": tmp_path / "nowhere.pt2",
        "a file as a folder": tmp_path / "empty" / "x.onnx",
        "NUL": "a\0b.pt",
        "NUL in a Path": Path("a\0b.tflite"),
        "too long": "x" * 5000,
        "no name": "",
        "no UTF-8": odd,
        "wrong content": __file__,
    }


@pytest.mark.parametrize("name", NAMES)
def test_odd_paths(readers, name, tmp_path):
    for kind, path in _paths(tmp_path).items():
        with pytest.raises(QuantvmError) as caught:
            readers[name](path)
        assert not caught.value.is_unexpected, f"{kind}: {caught.value}"
        str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [None, 5, 2.5, b"\0\0\0\0TFL3", b"", [], {}, ["a.pt"], object, 10**400, type("X", (), {})()]
)
def test_what_is_no_path(readers, name, value):
    with pytest.raises(QuantvmError) as caught:
        readers[name](value)
    assert not caught.value.is_unexpected, str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "nothing there", "NUL in a Path", "no UTF-8"])
@pytest.mark.parametrize("read", [load_rgb, read_schedules])
def test_images_and_tables(read, kind, tmp_path):
    with pytest.raises(QuantvmError):
        read(Path(_paths(tmp_path)[kind]))


def test_images_that_another_program_would_decode_are_none(tmp_path):
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.jpg").write_text(text)
    with pytest.raises(QuantvmError, match="not an image of a known format"):
        load_rgb(tmp_path / "a.jpg")


def test_the_stack_of_an_unexpected_error_goes_to_the_log(caplog):
    with caplog.at_level(logging.DEBUG, "quantvm"), pytest.raises(ModelImportError), stage("reading", ModelImportError):
        {}["a key"]
    assert "test_odd_paths.py" in caplog.text
    assert "KeyError" in caplog.text
