"""The workers of an evaluation as actors of a Ray cluster. Ray is imported only here, and only when it is asked for."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from quantvm.errors import ConfigError, gist
from quantvm.jobs.child_process import variables_of_threads
from quantvm.jobs.evaluation.crew import Worker
from quantvm.jobs.evaluation.kept_programs import digest_of_file
from quantvm.jobs.evaluation.unit_messages import Answer, Died, NetworkJob, Request
from quantvm.runtime.target import Machine
from quantvm.storage.scratch import scratch_folder

Files = dict[Path, bytes]

_LISTENS_S = 10.0


def missing_ray() -> Iterator[str]:
    """Yields what is wrong where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        yield "cluster: Ray is not installed: pip install 'quantvm[cluster]'"


class RayCrew:
    """Actors of a Ray cluster that is running.

    Args:
        address: of the cluster, as for `ray.init`.
        size: how many; None: as many as the cluster has room for now.
        machine: whose threads each has; an actor takes as many of Ray's CPUs.

    Raises:
        ConfigError: there is no such cluster, or it has no room.
    """

    def __init__(self, address: str, size: int | None, machine: Machine) -> None:
        import ray

        self._ray, self._machine = ray, machine
        self._is_mine = not ray.is_initialized()
        if self._is_mine:
            _connect(ray, address)
        room = sum(int(node["Resources"].get("CPU", 0) // machine.threads) for node in ray.nodes() if node["Alive"])
        if not room:
            self.close()
            raise ConfigError(
                f"cluster: no machine of {address} has {machine.threads} CPUs, the threads of a worker; use fewer "
                "--threads"
            )
        self.size = room if size is None else size
        self._actor_class = ray.remote(num_cpus=machine.threads, max_restarts=0, max_task_retries=0)(UnitActor)
        self._shipped: tuple[str, Any] = ("", None)
        self._n_started = 0

    def start(self) -> RayWorker:
        """Asks for one more actor; Ray starts it as soon as there is room."""
        self._n_started += 1
        return RayWorker(
            self, self._actor_class.remote(variables_of_threads(self._machine)), f"actor {self._n_started}"
        )

    def answers(self, workers: Collection[Worker], timeout_s: float) -> Iterator[tuple[Worker, Answer]]:
        """Yields one answer of each actor that has one."""
        by_pending = {
            worker.pending[0]: worker for worker in workers if isinstance(worker, RayWorker) and worker.pending
        }
        ready, _ = self._ray.wait(list(by_pending), num_returns=1, timeout=timeout_s) if by_pending else ([], [])
        if ready and len(by_pending) > 1:
            ready, _ = self._ray.wait(list(by_pending), num_returns=len(by_pending), timeout=0)
        for reference in ready:
            try:
                answer: Answer = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                answer = Died(_how_it_ended(error))
            by_pending[reference].pending.popleft()
            yield by_pending[reference], answer

    def ask(self, actor: Any, request: Request) -> Any:
        """Returns the reference of an actor's answer; the network's files are put into Ray's store once."""
        if not isinstance(request, NetworkJob):
            return actor.compute.remote(request)
        if self._shipped[0] != request.key:
            self._shipped = request.key, self._ray.put({path: path.read_bytes() for path in request.files})
        return actor.open.remote(request, [self._shipped[1]])

    def end(self, actor: Any) -> None:
        """Ends an actor, whatever it is doing."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Leaves the cluster."""
        self._shipped = ("", None)
        if self._is_mine:
            self._ray.shutdown()


class RayWorker:
    """An actor as the driver knows it.

    Attributes:
        name: for messages.
        pending: references of answers that have not come.
    """

    def __init__(self, crew: RayCrew, actor: Any, name: str) -> None:
        self._crew, self._actor, self.name = crew, actor, name
        self.pending: deque[Any] = deque()

    def send(self, request: Request) -> None:
        """Asks for something."""
        self.pending.append(self._crew.ask(self._actor, request))

    def close(self) -> None:
        """Ends the actor."""
        self.pending.clear()
        self._crew.end(self._actor)


class UnitActor:
    """What runs on a machine of the cluster: a worker, and a folder for files that its machine does not see."""

    def __init__(self, variables: dict[str, str]) -> None:
        os.environ.update(variables)  # before torch and TVM are loaded
        from quantvm.jobs.evaluation.unit_worker import UnitWorker

        self._worker, self._folder = UnitWorker(), ExitStack()

    def open(self, job: NetworkJob, shipped: list[Any]) -> Answer:
        """Opens a network.

        Args:
            job: the network.
            shipped: a reference of its files, which are fetched if the run folder is not the driver's here.
        """
        self._folder.close()
        if any(digest_of_file(path) != digest for path, digest in job.files.items()):
            import ray

            job = unpacked(job, ray.get(shipped[0]), self._folder.enter_context(scratch_folder("worker")))
        return self._worker.answer(job)

    def compute(self, task: Request) -> Answer:
        """Computes a task."""
        return self._worker.answer(task)


def unpacked(job: NetworkJob, files: Files, folder: Path) -> NetworkJob:
    """Returns the network with its files in another folder, where they are written."""
    places = {job.folder: folder / "network", job.float_folder: folder / "float"}
    for place in places.values():
        place.mkdir()
    for path, content in files.items():
        (places[path.parent] / path.name).write_bytes(content)
    return dataclasses.replace(
        job,
        folder=places[job.folder],
        float_folder=None if job.float_folder is None else places[job.float_folder],
    )


def _connect(ray: Any, address: str) -> None:
    """Connects to a cluster; Ctrl-C and SIGTERM stay what they were.

    Raises:
        ConfigError: there is none.
    """
    _raise_if_silent(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types
        raise ConfigError(
            f"cluster: cannot connect to {address}: {gist(error)}; start one with: ray start --head"
        ) from error
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)


def _raise_if_silent(address: str) -> None:
    """Makes sure that somebody listens at host:port, which Ray would try for minutes.

    Raises:
        ConfigError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENS_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster: nobody listens at {address} ({error}); name the address that `ray start --head` printed"
        ) from error


def _how_it_ended(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")
