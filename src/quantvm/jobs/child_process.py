"""Child processes of a job: how many threads they compute with, and that none outlives its parent."""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path

from quantvm.runtime.target import Machine

_LOOK_EACH_MS = 5000


def environment_of_child(machine: Machine) -> dict[str, str]:
    """Returns the environment of a child process: this process's own, with the thread count set for every library."""
    # A child must import the same quantvm, whatever -P or the working directory say.
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, **variables_of_threads(machine), "PYTHONPATH": path}


def variables_of_threads(machine: Machine) -> dict[str, str]:
    """Returns the variables by which every library computes with its threads, on whatever core is free."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
    return {**dict.fromkeys(names, str(machine.threads)), "TVM_BIND_THREADS": "0"}


def end_with_parent() -> None:
    """Ends this process, and those that it started, as soon as the parent process ends in any way.

    stdin is a pipe from the parent. Where another process holds its other end, too, such as one that the parent
    forked, the end is noticed within seconds.
    """
    parent = os.getppid()

    def wait() -> None:
        pipe = select.poll()
        pipe.register(0, 0)  # poll always reports that the other end is closed
        while not pipe.poll(_LOOK_EACH_MS) and os.getppid() == parent:
            pass
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    if hasattr(select, "poll"):
        threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
