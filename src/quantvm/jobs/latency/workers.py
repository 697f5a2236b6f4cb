"""Starts, asks and ends the processes in which engines are measured. The other end is ``engine_worker.py``."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any, Protocol

from quantvm.jobs.child_process import environment_of_child
from quantvm.jobs.latency.engines import Job
from quantvm.runtime.target import Machine

REQUEST_LIMIT_S = 1800.0
"""A request that takes longer is taken to hang."""


class WorkerError(Exception):
    """An engine failed or its process ended; `details` holds the stack or what the process last printed.

    `is_output_failure` says whether a file could not be written.
    """

    def __init__(self, message: str, details: str = "", is_output_failure: bool = False) -> None:
        super().__init__(message)
        self.details, self.is_output_failure = details, is_output_failure


class Worker(Protocol):
    """One engine in a process of its own, which does nothing between two requests."""

    def request(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Returns the result of an operation; the caller sleeps until then.

        Raises:
            WorkerError: the engine failed, or the process ended.
        """
        ...

    def close(self) -> None:
        """Ends the process."""
        ...


class ProcessWorker:
    """A Worker that is a process."""

    def __init__(self, job: Job, *, limit_s: float = REQUEST_LIMIT_S) -> None:
        self._job, self._limit_s = job, limit_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quantvm.jobs.latency.engine_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment_of_child(Machine(job.target, job.threads)),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the workers
        )
        self._send(dataclasses.asdict(job))

    def request(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Returns what the operation gave; the caller sleeps until then."""
        self._send({"op": operation, **arguments})
        assert self._process.stdout is not None
        timer = threading.Timer(self._limit_s, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            expired = not timer.is_alive()
            timer.cancel()
        if not line:
            raise self._ended(operation, expired)
        answer = json.loads(line)
        if not answer["ok"]:
            raise WorkerError(answer["error"], answer["stack"], answer["is_output_failure"])
        return answer["facts"]

    def close(self) -> None:
        """Ends the process, in the middle of a request too; it has nothing to save."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(OSError):  # data that was not sent yet is not needed any more
                stream.close()  # type: ignore[union-attr]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except OSError as error:
            raise self._ended(message.get("op", "start"), False) from error

    def _ended(self, operation: str, expired: bool) -> WorkerError:
        code = self._process.wait()
        self._stderr.seek(0)
        printed = self._stderr.read().decode(errors="replace").strip()
        if expired:
            return WorkerError(f"no answer to '{operation}' in {self._limit_s:.0f} s, the process was ended", printed)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = f": {printed.splitlines()[-1]}" if printed else ""
        return WorkerError(f"the process ended at '{operation}' with {how}{last}", printed)
