"""Makes batches of images, ahead of who computes with them, in the order of the samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from quantvm.data.ahead import ahead_in_order, default_workers
from quantvm.data.dataset import Sample
from quantvm.data.prepared import PreparedImages
from quantvm.data.preprocess import Preprocessing, normalized, preprocess
from quantvm.data.sources import Source
from quantvm.errors import ConfigError

_BATCHES_AHEAD = 2
Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Some samples in order.

    Attributes:
        ids: The samples' ids.
        x_f32: (N, 3, H, W), NCHW, C-contiguous, float32.
        labels: (N,), int64, ImageNet class indices.
    """

    ids: tuple[str, ...]
    x_f32: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def iterate_batches(
    samples: Iterable[Sample],
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int | None = None,
    prepared: PreparedImages | None = None,
) -> Generator[Batch, None, None]:
    """Yields the samples in order, `batch_size` at a time; the last batch may be smaller, none is empty.

    Args:
        samples: What to read.
        preprocessing: How images become tensors.
        batch_size: At least 1.
        workers: Threads that decode; by default one per core, 16 at most.
        prepared: Images that were decoded before; others are decoded now.

    Raises:
        DataError: A file cannot be read as an image (any more).
    """
    return iterate_parts([tuple(samples)], preprocessing, batch_size, workers=workers, prepared=prepared)


def iterate_parts(
    parts: Sequence[Sequence[Sample]],
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int | None = None,
    prepared: PreparedImages | None = None,
) -> Generator[Batch, None, None]:
    """Yields the samples as `iterate_batches`; no batch has samples of two parts.

    The first batches of a part are made ready while the last ones of the part before are used.
    """
    batches = [batch for part in parts for batch in _cut(part, batch_size)]
    sources = [[sample.source for sample in batch] for batch in batches]
    inputs = _inputs(sources, preprocessing, batch_size, workers, prepared)
    with closing(inputs):
        for samples, x_f32 in zip(batches, inputs, strict=True):
            labels = np.asarray([sample.label for sample in samples], dtype=np.int64)
            yield Batch(tuple(sample.id for sample in samples), x_f32, labels)


def iterate_inputs(
    sources: Sequence[Source],
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int | None = None,
    prepared: PreparedImages | None = None,
) -> Generator[np.ndarray, None, None]:
    """Yields (N, 3, H, W) float32 arrays of the images in order, `batch_size` at a time; the last may be smaller.

    Raises:
        DataError: A file cannot be read as an image (any more).
    """
    return _inputs(_cut(sources, batch_size), preprocessing, batch_size, workers, prepared)


def _cut(items: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    if batch_size < 1:
        raise ConfigError(f"batch size: got {batch_size}, expected at least 1")
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def _inputs(
    batches: Sequence[Sequence[Source]],
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int | None,
    prepared: PreparedImages | None,
) -> Generator[np.ndarray, None, None]:
    arrays: deque[np.ndarray] = deque()

    def slots() -> Iterator[tuple[Source, np.ndarray]]:
        for batch in batches:
            arrays.append(np.empty((len(batch), 3, preprocessing.crop, preprocessing.crop), np.float32))
            yield from zip(batch, arrays[-1], strict=True)

    def fill(slot: tuple[Source, np.ndarray]) -> None:
        source, out_f32 = slot
        x_u8 = None if prepared is None else prepared.pixels(source, preprocessing.geometry)
        if x_u8 is None:
            preprocess(source, preprocessing, out_f32)
        else:
            normalized(x_u8, preprocessing, out_f32)

    workers = workers or default_workers()
    most = max(batch_size * (1 + _BATCHES_AHEAD), workers)
    with closing(ahead_in_order(fill, slots(), most=most, workers=workers)) as filled:
        for batch in batches:
            for _ in batch:
                next(filled)
            yield arrays.popleft()
