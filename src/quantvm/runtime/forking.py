"""Makes compiled models work in a forked child as in the parent.

TVM's threads do not exist in the child, and waiting for them would never end. So the pool of the forking thread is
renewed right before the fork, and again in the child. A fork waits for the calls of other threads to end. Imports
neither torch nor tvm.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING

from quantvm.errors import RunError

if TYPE_CHECKING:
    from .artifact import Artifact

_artifacts: weakref.WeakSet[Artifact] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[threading.Lock] = []
_broken_threads: set[int] = set()
"""Threads of this process whose pool did not survive a fork."""


def follow(artifact: Artifact) -> None:
    """Makes forks wait for the calls of a model."""
    _artifacts.add(artifact)


def check_thread() -> None:
    """Notes that the calling thread is about to use TVM's pool.

    Raises:
        RunError: the thread that forked this process had a pool, and this TVM cannot renew it.
    """
    if threading.get_ident() in _broken_threads:
        raise RunError(
            "this process was forked by a thread that had run a compiled model, and the threads of this TVM do not "
            "survive that: start processes by the method spawn or forkserver, or run models only in the children"
        )
    from quantvm.tvm_compat import note_thread_pool

    note_thread_pool()


def _before() -> None:
    _forking.acquire()
    for artifact in list(_artifacts):
        artifact.lock.acquire()
        _held.append(artifact.lock)
    _renew()


def _after() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _in_child() -> None:
    _after()
    _broken_threads.clear()
    if not _renew():
        _broken_threads.add(threading.get_ident())


def _renew() -> bool:
    compat = sys.modules.get("quantvm.tvm_compat")  # without it no thread of this process has a pool
    return compat is None or compat.renew_thread_pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
