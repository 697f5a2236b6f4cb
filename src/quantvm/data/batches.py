"""Makes batches of images, decoded ahead by a small pool of threads, in the order of the samples."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantvm.data.dataset import Sample
from quantvm.data.preprocess import Preprocessing, preprocess
from quantvm.data.sources import Source
from quantvm.errors import ConfigError

_BATCHES_AHEAD = 2


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
    samples: Iterable[Sample], preprocessing: Preprocessing, batch_size: int, *, workers: int | None = None
) -> Iterator[Batch]:
    """Yields the samples in order, `batch_size` at a time; the last batch may be smaller, none is empty.

    Args:
        samples: What to read.
        preprocessing: How images become tensors.
        batch_size: At least 1.
        workers: Threads that decode; by default one per core, 8 at most.

    Raises:
        DataError: A file cannot be read as an image (any more).
    """
    samples = tuple(samples)
    inputs = iterate_inputs([sample.source for sample in samples], preprocessing, batch_size, workers=workers)
    start = 0
    for x_f32 in inputs:
        chosen = samples[start : start + len(x_f32)]
        start += len(chosen)
        labels = np.asarray([sample.label for sample in chosen], dtype=np.int64)
        yield Batch(tuple(sample.id for sample in chosen), x_f32, labels)


def iterate_inputs(
    sources: Sequence[Source], preprocessing: Preprocessing, batch_size: int, *, workers: int | None = None
) -> Iterator[np.ndarray]:
    """Yields (N, 3, H, W) float32 arrays of the images in order, `batch_size` at a time; the last may be smaller.

    Raises:
        DataError: A file cannot be read as an image (any more).
    """
    if batch_size < 1:
        raise ConfigError(f"batch size: got {batch_size}, expected at least 1")
    chunks = iter([sources[start : start + batch_size] for start in range(0, len(sources), batch_size)])
    pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode")
    ahead: deque[list[Future[np.ndarray]]] = deque()

    def submit_next() -> None:
        if chunk := next(chunks, None):
            ahead.append([pool.submit(preprocess, source, preprocessing) for source in chunk])

    try:
        for _ in range(1 + _BATCHES_AHEAD):
            submit_next()
        while ahead:
            x_f32 = np.stack([future.result() for future in ahead.popleft()])
            submit_next()
            yield x_f32
    finally:
        pool.shutdown(cancel_futures=True)


def default_workers() -> int:
    """Returns how many threads decode images: one per core that this process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))
