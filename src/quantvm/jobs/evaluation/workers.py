"""Has workers compute the units of an evaluation, where these were asked for; the driver alone writes.

What workers cannot compute stays for the driver: a network that the run folder does not keep, or a float model that
PyTorch cannot trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.cpu_kinds import proof_tasks
from quantvm.jobs.evaluation.crew import Crew, ProcessCrew
from quantvm.jobs.evaluation.kept_programs import NotKeptError
from quantvm.jobs.evaluation.network import Network
from quantvm.jobs.evaluation.networks import Networks
from quantvm.jobs.evaluation.parts import Part, cpus_of
from quantvm.jobs.evaluation.spread import LostShardsError, Spread
from quantvm.jobs.evaluation.store import PartStore
from quantvm.jobs.evaluation.unit_messages import NetworkJob, ShardTask
from quantvm.jobs.evaluation.units import Side
from quantvm.progress import Progress
from quantvm.runtime.target import Machine
from quantvm.storage.scratch import scratch_folder
from quantvm.workload.plan import Entry

Advance = Callable[[float], None]


class Workers:
    """The workers of one evaluation; they start when there is work for them.

    Args:
        config: of the evaluation.
        machine: whose threads each worker has.
        networks: that they open.
        store: of the parts.
        progress: where it is told what becomes of them.
    """

    def __init__(
        self, config: RunConfig, machine: Machine, networks: Networks, store: PartStore, progress: Progress
    ) -> None:
        self._batch_size, self._networks, self._store, self._progress = config.batch_size, networks, store, progress
        self._crew = crew_of(config, machine)
        self._spread = None if self._crew is None else Spread(self._crew, progress)

    def compute(self, network: Network, entry: Entry, tasks: Sequence[ShardTask], advance: Advance) -> bool:
        """Has the tasks computed as far as workers can do that; their parts are in the store then.

        Returns whether there was anything that workers can do.

        Args:
            network: whose units they are.
            entry: its model.
            tasks: one for each shard of which something is missing.
            advance: is called with the number of images that were done.

        Raises:
            LostShardsError, WorkersError: see `Spread.run`.
            Exception: what the network's engines raise.
        """
        if self._spread is None or self._crew is None or not tasks:
            return False
        with ExitStack() as stack:
            job, tasks = self._prepared(network, entry, tasks, stack)
            if job is None or not tasks:
                return False
            if len(tasks) < self._crew.size:
                self._progress.note(f"{len(tasks)} shards for {self._crew.size} workers: see --shard-size")

            def keep(task: ShardTask, parts: Mapping[Side, Part]) -> None:
                for side, part in parts.items():
                    self._store.add(side, task.shard, part)
                advance(len(task.samples))

            self._spread.run(job, tasks, keep)
            self._compare(network, job, tasks[0])
        return True

    def close(self) -> None:
        """Ends the workers."""
        if self._spread is not None:
            self._spread.close()

    def _prepared(
        self, network: Network, entry: Entry, tasks: Sequence[ShardTask], stack: ExitStack
    ) -> tuple[NetworkJob | None, Sequence[ShardTask]]:
        """Returns what the workers open, and what they can do of the tasks."""
        needs_float = any(side.is_float for task in tasks for side in task.wanted)
        folder = stack.enter_context(scratch_folder("float")) if needs_float else None
        try:
            job = self._networks.job(network, entry, folder)
        except NotKeptError as error:
            self._progress.note(f"the float model runs in this process, not in the workers: {error}")
            job, tasks = self._networks.job(network, entry, None), _without_float(tasks)
        if job is None:
            self._progress.note("workers cannot open what the run folder does not keep: this process computes it")
        return job, tasks

    def _compare(self, network: Network, job: NetworkJob, task: ShardTask) -> None:
        """Has each kind of processor compute the same few images, if there are several kinds."""
        assert self._spread is not None
        cpus = self._spread.cpus()
        fingerprints = {side: found for side, found in task.fingerprints.items() if not side.is_float}
        if len(cpus) < 2 or not fingerprints:
            return
        known = [cpus_of(self._store.proofs(*each)) for each in fingerprints.items()]
        missing = [cpu for cpu in cpus if not all(cpu in found for found in known)]

        def keep(task: ShardTask, parts: Mapping[Side, Part]) -> None:
            for side, part in parts.items():
                self._store.add_proof(side, part)

        try:
            self._spread.run(job, proof_tasks(task.shard, self._batch_size, fingerprints, missing), keep)
        except LostShardsError as error:
            self._progress.note(f"the kinds of processors were not compared: {error}")


def crew_of(config: RunConfig, machine: Machine) -> Crew | None:
    """Returns where the workers come from that were asked for; None if none were.

    Raises:
        ConfigError: there is no such cluster.
    """
    if config.cluster is not None:
        from quantvm.jobs.evaluation.cluster import RayCrew

        return RayCrew(config.cluster, config.workers, machine)
    return None if config.workers is None else ProcessCrew(config.workers, machine)


def _without_float(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """Returns the tasks without their float sides; what is left without any is left out."""
    found = []
    for task in tasks:
        wanted = {side: n for side, n in task.wanted.items() if not side.is_float}
        if wanted:
            found.append(dataclasses.replace(task, wanted=wanted, done={side: task.done[side] for side in wanted}))
    return found
