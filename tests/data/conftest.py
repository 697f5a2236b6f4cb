from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantvm.data.classes import imagenet_classes
from quantvm.progress import SilentProgress

WNIDS = [item.wnid for item in imagenet_classes()]


class NotingProgress(SilentProgress):
    """Keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def noting():
    return NotingProgress()


def write_image(path: Path, size=(12, 10), mode="RGB", seed=0, **options) -> Path:
    """Writes a random image; the suffix says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def make_images():
    """Makes `count` images in each of the folders."""

    def make(root: Path, folders, count=2) -> Path:
        for folder in folders:
            for number in range(count):
                write_image(root / folder / f"{number}.png")
        return root

    return make


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, so that no test sees what the machine has."""
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "cache"
