"""The workers of an evaluation as processes on this machine. Their other end is `worker_process.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Protocol

from quantvm.jobs.child_process import environment_of_child
from quantvm.jobs.evaluation.unit_messages import Answer, Died, Request
from quantvm.runtime.target import Machine


class Worker(Protocol):
    """A worker; it does one request after the other."""

    name: str

    def send(self, request: Request) -> None:
        """Asks for something; the answer comes from `Crew.answers`, also if the worker has ended."""
        ...

    def close(self) -> None:
        """Ends the worker, whatever it is doing."""
        ...


class Crew(Protocol):
    """Where workers come from.

    Attributes:
        size: how many there should be.
    """

    size: int

    def start(self) -> Worker:
        """Starts one more worker."""
        ...

    def answers(self, workers: Collection[Worker], timeout_s: float) -> Iterator[tuple[Worker, Answer]]:
        """Yields answers that have come, in the order of the requests for each worker; waits for the first one.

        What was not yielded, because the caller was interrupted, comes the next time.

        Args:
            workers: those that were asked.
            timeout_s: how long to wait; then nothing is yielded.
        """
        ...

    def close(self) -> None:
        """Gives back what belongs to no single worker."""
        ...


class ProcessWorker:
    """A worker that is a process, and the head of a group of processes."""

    def __init__(self, machine: Machine) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quantvm.jobs.evaluation.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment_of_child(machine),
            start_new_session=True,  # Ctrl-C is for the driver, which then ends the workers
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self.answers = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()
        self.name = f"process {self._process.pid}"
        self.is_readable = True

    def send(self, request: Request) -> None:
        """Sends a request; if the process has ended, its answers end."""
        with suppress(OSError):
            self._requests.send(request)

    def read(self) -> Answer:
        """Returns the next answer; it waits for one."""
        self.is_readable = False  # after an interruption within an answer, the rest of it is not the next one
        try:
            answer = self.answers.recv()
        except (EOFError, OSError):  # an OSError: it ended within an answer
            return Died(self._how_it_ended())
        self.is_readable = True
        return answer

    def close(self) -> None:
        """Ends the process and those that it started."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self.answers, self._stderr):
            with suppress(OSError):
                stream.close()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"signal {-code}"
        self._stderr.seek(0)
        printed = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}: {printed[-1]}" if printed else f"exit code {code}"


class ProcessCrew:
    """Processes on this machine.

    Args:
        size: how many.
        machine: whose threads each has.
    """

    def __init__(self, size: int, machine: Machine) -> None:
        self.size, self._machine = size, machine

    def start(self) -> ProcessWorker:
        """Starts one more process."""
        return ProcessWorker(self._machine)

    def answers(self, workers: Collection[Worker], timeout_s: float) -> Iterator[tuple[Worker, Answer]]:
        """Yields one answer of each process that has one."""
        own = (worker for worker in workers if isinstance(worker, ProcessWorker))
        by_pipe = {worker.answers: worker for worker in own if worker.is_readable}
        for pipe in wait(list(by_pipe), timeout_s):
            worker = by_pipe[pipe]  # type: ignore[index]
            yield worker, worker.read()

    def close(self) -> None:
        """Nothing belongs to all processes."""
