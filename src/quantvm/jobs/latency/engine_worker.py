"""The process that one engine runs in: reads a request, does it, answers, and blocks until the next one.

A job and requests come as lines of JSON on stdin, one answer for each goes to stdout; arrays travel in files. What a
library prints goes to stderr. The other end is ``workers.py``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.errors import is_output_failure
from quantvm.jobs.child_process import end_with_parent
from quantvm.jobs.latency.engines import Facts, Job, Run, make_engine
from quantvm.jobs.latency.profiling import profile_job
from quantvm.jobs.latency.rounds import time_calls
from quantvm.runtime.interchange import aligned_empty
from quantvm.tvm_start import raise_first_error


class Worker:
    """One running engine; every method is a request."""

    def __init__(self, job: Job) -> None:
        self._job, self._engine = job, make_engine(job)
        self._runs: dict[int, tuple[Run, np.ndarray]] = {}
        self._peak_bytes = 0

    def build(self) -> Facts:
        """Writes the file that `load` reads."""
        return self._engine.build()

    def load(self, batch: int) -> Facts:
        """Loads the model for a batch size, makes the first call and saves its outputs."""
        run, facts = self._engine.load(batch)
        x_f32 = aligned(np.load(self._job.input_path)[:batch])
        start_s = time.perf_counter()
        y_f32 = run(x_f32)
        facts["first_call_ms"] = (time.perf_counter() - start_s) * 1e3
        np.save(self._job.output_path(batch), y_f32)
        self._runs[batch] = run, x_f32
        return facts

    def warm_up(self, batch: int, calls: int, seconds: float) -> Facts:
        """Calls the engine until its times are steady; the peak of memory counts from here."""
        self._note_peak()
        reset_peak_rss()
        time_calls(self._call(batch), min_calls=calls, min_seconds=seconds)
        return {}

    def measure(self, batch: int, calls: int, seconds: float) -> dict[str, list[float]]:
        """Returns the duration of each call of one round."""
        call = self._call(batch)
        for _ in range(3):  # another engine has filled the caches, and the threads are asleep
            call()
        gc.disable()
        try:
            return {"samples_ms": time_calls(call, min_calls=calls, min_seconds=seconds)}
        finally:
            gc.enable()

    def profile(self, batch: int, calls: int, seconds: float) -> Facts:
        """Returns where TVM's time goes, see ProfileRow."""
        return dict(profile_job(self._job, batch, min_calls=calls, min_seconds=seconds))

    def memory(self) -> Facts:
        """Returns the peaks of this process's memory, in bytes."""
        self._note_peak()
        return {"peak_rss_bytes": self._peak_bytes, "inference_peak_rss_bytes": peak_rss_since_reset()}

    def _note_peak(self) -> None:
        self._peak_bytes = max(self._peak_bytes, peak_rss_since_reset() or peak_rss_of_process())

    def _call(self, batch: int) -> Callable[[], object]:
        run, x_f32 = self._runs[batch]
        return lambda: run(x_f32)


def aligned(x_f32: np.ndarray) -> np.ndarray:
    """Returns a writable copy at an address that no engine has to copy from."""
    copy_f32 = aligned_empty(x_f32.shape)
    copy_f32[...] = x_f32
    return copy_f32


def reset_peak_rss() -> None:
    """Restarts the system's measurement of peak memory, if it can."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_of_process() -> int:
    """Returns the system's own peak of memory, in bytes.

    Linux also counts the memory of the parent process before exec; use `peak_rss_since_reset` there.
    """
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def peak_rss_since_reset() -> int | None:
    """Returns the peak of memory since it was reset, in bytes; None where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def settle(limit_s: float = 2.0) -> None:
    """Waits until the engine's threads have stopped spinning, so that they do not slow the next engine."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        used_s = time.process_time()
        time.sleep(0.02)
        if time.process_time() - used_s < 0.002:
            return


def answer(worker: Callable[[], Any], request: dict[str, Any]) -> dict[str, Any]:
    """Returns what one request gave, or the error that it raised."""
    try:
        operation = request.pop("op")
        facts = getattr(worker(), operation)(**request)
        settle()
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is told, and its column stays empty
        return {
            "ok": False,
            "error": f"{type(error).__name__}: {error}",
            "stack": traceback.format_exc(),
            "is_output_failure": is_output_failure(error),
        }
    return {"ok": True, "facts": facts}


def leave_out_compilers() -> None:
    """Restricts this process to running saved models; otherwise TVM imports PyTorch if it is installed."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails from now on
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"


def main() -> None:
    """Serves one job until stdin ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.readline()))
    if job.deployed:
        leave_out_compilers()
    else:
        raise_first_error()
    made: list[Worker] = []

    def worker() -> Worker:
        if not made:
            made.append(Worker(job))
        return made[0]

    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), file=answers, flush=True)
    # An engine's threads may fail at a normal exit, and nothing is left to be saved.
    os._exit(0)


if __name__ == "__main__":
    main()
