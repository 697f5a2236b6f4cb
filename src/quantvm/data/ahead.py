"""Work that threads do ahead of who needs it, in order, with a bound on what lies ready.

Threads, not processes: Pillow holds Python's lock for less than a tenth of the time that an image takes, so threads use
every core; they share what they decoded without copying it, need no `if __name__ == "__main__"` in a user's script, and
fork no process while the pools of PyTorch and TVM run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 16  # more would wait for Python's lock


def default_workers() -> int:
    """Returns how many threads decode images: one per core that this process may use, 16 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, cores))


def ahead_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, most: int, workers: int | None = None
) -> Generator[Result, None, None]:
    """Yields `function` of each item, in order; threads compute the next ones meanwhile.

    Closing the iterator ends the threads.

    Args:
        function: What is done with an item; what it raises is raised when its turn comes.
        items: Read by the caller's thread, no further ahead than needed.
        most: How many items are under way or ready at most.
        workers: How many threads; by default `default_workers()`.
    """
    pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode")
    remaining = iter(items)
    futures: deque[Future[Result]] = deque()
    try:
        for item in remaining:
            futures.append(pool.submit(function, item))
            if len(futures) >= most:
                break
        while futures:
            result = futures.popleft().result()
            for item in remaining:
                futures.append(pool.submit(function, item))
                break
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
