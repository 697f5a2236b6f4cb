"""Spreads the work on a network over workers.

A worker opens the network once and takes one shard after the other. One that ends costs its shard only, which is done
again by another. A shard that ended its worker three times is lost: the others are finished, then an error names it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from quantvm.errors import OutputError, QuantvmError
from quantvm.jobs.evaluation.crew import Crew, Worker
from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.unit_messages import Answer, Computed, Died, Failed, NetworkJob, Opened, ShardTask
from quantvm.jobs.evaluation.unit_worker import REFUSALS
from quantvm.jobs.evaluation.units import Side
from quantvm.progress import Progress

Keep = Callable[[ShardTask, Mapping[Side, Part]], None]
"""Is called with a task and the parts that were computed of it."""

_MOST_DEATHS = 3
_NAMED_IMAGES = 3
_WAIT_S = 1.0
_TOLD_EACH_S = 60.0
_PATIENCE_S = 900.0


class WorkersError(QuantvmError, RuntimeError):
    """No worker can be had, or each ends when it opens the network."""


class LostShardsError(QuantvmError, RuntimeError):
    """Shards ended their workers again and again; all others are computed."""


class WorkerStackError(Exception):
    """The stack of an error in a worker: the cause of the error that the driver raises."""


@dataclass(eq=False)
class _Hand:
    """What the driver knows about a worker.

    Attributes:
        key: of the network that it was asked to open last.
        is_open: whether it has answered that it is open.
        cpu: its processor; None until it is known.
        task: what it does; None if it waits for work.
    """

    worker: Worker
    key: str = ""
    is_open: bool = False
    cpu: str | None = None
    task: ShardTask | None = None

    def open(self, job: NetworkJob) -> None:
        self.key, self.is_open = job.key, False
        self.worker.send(job)


class Spread:
    """The workers of an evaluation. They stay from network to network.

    Args:
        crew: where they come from.
        progress: where it is told that workers ended.
    """

    def __init__(self, crew: Crew, progress: Progress) -> None:
        self._crew, self._progress = crew, progress
        self._hands: dict[Worker, _Hand] = {}

    def run(self, job: NetworkJob, tasks: Iterable[ShardTask], keep: Keep) -> None:
        """Has the tasks computed; what comes back is kept at once.

        Args:
            job: the network.
            tasks: one for each shard. One that is for a kind of processor that no worker has is left out.
            keep: is called for each task, also for what an interrupted or failed one has computed.

        Raises:
            LostShardsError: some tasks ended their workers three times; all others are kept.
            WorkersError: no worker can be had.
            Exception: what the network's engines raise in a worker; the cause has the stack.
        """
        work = _Work(job, deque(tasks))
        try:
            while work.waiting or any(hand.task for hand in self._hands.values()):
                self._staff(work)
                self._hand_out(work)
                for worker, answer in self._crew.answers(self._hands, _WAIT_S):
                    if worker in self._hands:
                        self._take(work, self._hands[worker], answer, keep)
                self._be_patient(work)
        except BaseException:
            self._break_off(work, keep)
            raise
        if work.lost:
            raise LostShardsError("; ".join(work.lost))

    def cpus(self) -> list[str]:
        """Returns the names of the processors of the workers that have opened the network, without repetition."""
        return sorted({hand.cpu for hand in self._hands.values() if hand.is_open and hand.cpu is not None})

    def close(self) -> None:
        """Ends all workers."""
        for hand in self._hands.values():
            hand.worker.close()
        self._hands.clear()
        self._crew.close()

    def _staff(self, work: _Work) -> None:
        """Starts workers as long as there is work for more of them, and has all open the network."""
        n_tasks = len(work.waiting) + sum(hand.task is not None for hand in self._hands.values())
        while len(self._hands) < min(self._crew.size - work.n_refused, n_tasks):
            worker = self._crew.start()
            self._hands[worker] = _Hand(worker)
        for hand in self._hands.values():
            if hand.key != work.job.key:
                hand.open(work.job)

    def _hand_out(self, work: _Work) -> None:
        for hand in self._hands.values():
            if hand.is_open and hand.task is None:
                hand.task = next((task for task in work.waiting if task.cpu in (None, hand.cpu)), None)
                if hand.task is not None:
                    work.waiting.remove(hand.task)
                    hand.worker.send(hand.task)
        if self._hands and all(hand.is_open and hand.task is None for hand in self._hands.values()):
            work.waiting.clear()  # nobody may do the rest, whose kind of processor is gone

    def _take(self, work: _Work, hand: _Hand, answer: Answer, keep: Keep) -> None:
        if isinstance(answer, Died):
            self._bury(work, hand, answer)
            return
        if answer.key != work.job.key:  # about a network before this one
            return
        if isinstance(answer, Opened):
            hand.is_open, hand.cpu, hand.worker.name = True, answer.cpu, answer.worker
            work.n_failed_starts, work.since_s = 0, time.monotonic()
            return
        task, hand.task = hand.task, None
        if isinstance(answer, Computed):
            assert task is not None
            keep(task, answer.parts)
            return
        if task is None and isinstance(answer.error, REFUSALS):
            self._dismiss(work, hand, answer)
            return
        if task is not None and answer.parts:
            keep(task, answer.parts)
        raise answer.error from WorkerStackError(f"in {hand.worker.name}\n{answer.stack}")

    def _bury(self, work: _Work, hand: _Hand, died: Died) -> None:
        """Forgets a worker that has ended; its task waits for another one, or is lost."""
        del self._hands[hand.worker]
        hand.worker.close()
        name, task = hand.worker.name, hand.task
        if task is None:
            self._progress.note(f"the worker {name} ended ({died.reason})")
            if not hand.is_open:
                work.n_failed_starts += 1
            if work.n_failed_starts >= _MOST_DEATHS:
                raise WorkersError(f"{_MOST_DEATHS} workers ended when they opened the network: {died.reason}")
            return
        index = task.shard.index
        work.deaths[index] += 1
        again = work.deaths[index] < _MOST_DEATHS
        self._progress.note(
            f"the worker {name} ended ({died.reason}); its shard {index} {'is done again' if again else 'is given up'}"
        )
        if again:
            work.waiting.append(task)
        else:
            work.lost.append(f"{_named(task)} ended {_MOST_DEATHS} workers, the last one with {died.reason}")

    def _dismiss(self, work: _Work, hand: _Hand, refusal: Failed) -> None:
        """Goes on without a worker whose machine cannot take part.

        Raises:
            Exception: no other is left.
        """
        del self._hands[hand.worker]
        hand.worker.close()
        work.n_refused += 1
        if work.n_refused >= self._crew.size:
            raise refusal.error
        self._progress.note(f"the worker {hand.worker.name} cannot take part: {refusal.error}")

    def _be_patient(self, work: _Work) -> None:
        """Tells from time to time that there is no worker.

        Raises:
            WorkersError: there was none for too long.
        """
        now_s = time.monotonic()
        if any(hand.is_open for hand in self._hands.values()):
            work.since_s = work.told_s = now_s
        elif now_s - work.since_s > _PATIENCE_S:
            raise WorkersError(
                f"none of {len(self._hands)} workers was ready within {_PATIENCE_S / 60:.0f} minutes; what was "
                "computed is kept"
            )
        elif now_s - work.told_s > _TOLD_EACH_S:
            work.told_s = now_s
            self._progress.note(f"waiting for workers: none of {len(self._hands)} is ready yet")

    def _break_off(self, work: _Work, keep: Keep) -> None:
        """Keeps what has come back, and ends the workers that are at work."""
        with suppress(OutputError):
            for worker, answer in self._crew.answers(self._hands, 0):
                hand = self._hands.get(worker)
                if hand is not None and hand.task is not None and isinstance(answer, (Computed, Failed)):
                    keep(hand.task, answer.parts)
                    hand.task = None
        for hand in list(self._hands.values()):
            if hand.task is not None:
                del self._hands[hand.worker]
                hand.worker.close()


@dataclass(eq=False)
class _Work:
    """The work on one network under way."""

    job: NetworkJob
    waiting: deque[ShardTask]

    def __post_init__(self) -> None:
        self.deaths: Counter[int] = Counter()
        self.lost: list[str] = []
        self.n_failed_starts = self.n_refused = 0
        self.since_s = self.told_s = time.monotonic()


def _named(task: ShardTask) -> str:
    """Returns a shard with its first images, for messages."""
    ids = [sample.id for sample in task.shard.samples]
    more = f" and {len(ids) - _NAMED_IMAGES} more" if len(ids) > _NAMED_IMAGES else ""
    return f"shard {task.shard.index} ({len(ids)} images: {', '.join(ids[:_NAMED_IMAGES])}{more})"
