"""Work that is spread over workers, with workers that are none: what becomes of shards when workers end or refuse."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from quantvm.data import Sample
from quantvm.data.prepared import PreparedImages
from quantvm.errors import MachineError, OutputError, UnsupportedOpError
from quantvm.jobs.evaluation import spread as spreading
from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.spread import LostShardsError, Spread, WorkersError
from quantvm.jobs.evaluation.unit_messages import Computed, Died, Failed, NetworkJob, Opened, ShardTask
from quantvm.jobs.evaluation.units import Shard, Side
from quantvm.runtime.target import Machine

SIDE = Side("alpha", "eager", "torch")


class Notes:
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


class FakeWorker:
    def __init__(self, crew, number):
        self.crew, self.number, self.name, self.requests, self.is_closed = crew, number, f"worker {number}", [], False

    def send(self, request):
        assert not self.is_closed
        self.requests.append(request)

    def close(self):
        self.is_closed = True


class FakeCrew:
    """`does(worker, request)` returns the answer, or None for one that is not there yet."""

    def __init__(self, size, does=None):
        self.size, self.does = size, does or (lambda worker, request: None)
        self.started, self.shards = [], defaultdict(list)

    def start(self):
        self.started.append(FakeWorker(self, len(self.started)))
        return self.started[-1]

    def answers(self, workers, timeout_s):
        for worker in list(workers):
            if worker.requests:
                request = worker.requests[0]
                answer = self.does(worker, request) or self.usual(worker, request)
                if answer != "later":
                    worker.requests.pop(0)
                    yield worker, answer

    def usual(self, worker, request):
        if isinstance(request, NetworkJob):
            worker.key = request.key
            return Opened(request.key, getattr(worker, "cpu", "any"), f"process {worker.number}")
        self.shards[worker.number].append(request.shard.index)
        return Computed(worker.key, {SIDE: part_of(request.shard)})

    def close(self):
        pass


def part_of(shard):
    return Part(tuple(sample.id for sample in shard.samples), np.zeros(len(shard), np.int64), {}, {})


def job(key="network"):
    return NetworkJob(
        key, Path(), {}, None, {}, None, None, Machine("native", 1), "fbgemm", None, 4, PreparedImages(), {}
    )


def tasks(n, **options):
    shards = [Shard(i, tuple(Sample(f"{i}/{j}.png", Path(), 0) for j in range(5))) for i in range(n)]
    return [ShardTask(shard, {}, {}, {}, **options) for shard in shards]


class Kept:
    def __init__(self):
        self.indices, self.cpus = [], []

    def __call__(self, task, parts):
        self.indices.append(task.shard.index)
        self.cpus.append(task.cpu)


@pytest.fixture
def kept():
    return Kept()


def run(crew, work, kept, notes=None, network=None):
    spread = Spread(crew, notes or Notes())
    try:
        spread.run(network or job(), work, kept)
    finally:
        spread.close()
        assert all(worker.is_closed for worker in crew.started)


def test_every_shard_is_computed_once_and_every_worker_takes_some(kept):
    crew = FakeCrew(3)
    run(crew, tasks(10), kept)
    assert sorted(kept.indices) == list(range(10))
    assert len(crew.started) == 3
    assert all(len(found) >= 3 for found in crew.shards.values())


def test_there_are_no_more_workers_than_shards(kept):
    crew = FakeCrew(8)
    run(crew, tasks(2), kept)
    assert len(crew.started) == 2


def test_workers_stay_for_the_next_network_and_late_answers_about_the_last_one_are_ignored(kept):
    late = []

    def does(worker, request):
        if isinstance(request, NetworkJob) and request.key == "first" and worker.number == 1:
            late.append(worker)  # still opening when the other one has done everything
            return "later" if len(late) < 7 else Failed("first", ValueError("too late"), "")
        return None

    crew = FakeCrew(2, does)
    spread = Spread(crew, Notes())
    spread.run(job("first"), tasks(3), kept)
    spread.run(job("second"), tasks(8), kept)
    assert sorted(kept.indices) == sorted([*range(3), *range(8)])
    assert len(crew.started) == 2
    assert set(crew.shards) == {0, 1}


def test_a_worker_that_ends_costs_its_shard_only_and_another_does_it(kept):
    died = []

    def does(worker, request):
        if isinstance(request, ShardTask) and request.shard.index == 4 and not died:
            died.append(worker)
            return Died("signal 9")
        return None

    crew, notes = FakeCrew(2, does), Notes()
    run(crew, tasks(8), kept, notes)
    assert sorted(kept.indices) == list(range(8))
    assert len(crew.started) == 3
    assert notes.lines == [f"the worker process {died[0].number} ended (signal 9); its shard 4 is done again"]


def test_a_shard_that_ends_three_workers_is_lost_and_named_and_all_others_are_kept(kept):
    def does(worker, request):
        return Died("signal 11") if isinstance(request, ShardTask) and request.shard.index in (1, 6) else None

    crew = FakeCrew(2, does)
    with pytest.raises(LostShardsError) as raised:
        run(crew, tasks(8), kept)
    assert sorted(kept.indices) == [0, 2, 3, 4, 5, 7]
    assert sorted(str(raised.value).split("; ")) == [
        f"shard {i} (5 images: {i}/0.png, {i}/1.png, {i}/2.png and 2 more) ended 3 workers, the last one with signal 11"
        for i in (1, 6)
    ]


@pytest.mark.parametrize("kind", [UnsupportedOpError, ValueError])
def test_what_a_network_raises_in_a_worker_is_raised_with_its_stack_and_finished_shards_are_kept(kept, kind):
    def does(worker, request):
        if not isinstance(request, ShardTask):
            return None
        if request.shard.index == 3:
            return Failed(worker.key, kind("the model's own code"), "File model.py, line 7", {SIDE: Part()})
        return "later" if request.shard.index == 2 else None

    crew = FakeCrew(2, does)
    with pytest.raises(kind, match="the model's own code") as raised:
        run(crew, tasks(8), kept)
    assert "File model.py, line 7" in str(raised.value.__cause__)
    assert sorted(kept.indices) == [0, 1, 3]  # of shard 3 what was computed before


def test_after_an_error_the_workers_that_were_at_work_are_ended_and_others_take_over(kept):
    state = {"fails": True}

    def does(worker, request):
        if isinstance(request, ShardTask) and state["fails"]:
            return Failed(worker.key, ValueError("no"), "") if request.shard.index == 0 else "later"
        return None

    crew = FakeCrew(2, does)
    spread = Spread(crew, Notes())
    with pytest.raises(ValueError, match="no"):
        spread.run(job(), tasks(4), kept)
    assert [worker.is_closed for worker in crew.started] == [False, True]
    state["fails"] = False
    spread.run(job("next"), tasks(4), kept)
    assert sorted(kept.indices) == [0, 1, 2, 3]


def test_what_has_come_back_is_kept_at_an_interruption(kept):
    seen = []

    def interrupted(task, parts):
        if not seen:
            seen.append(task)
            raise KeyboardInterrupt
        kept(task, parts)

    crew = FakeCrew(2)
    with pytest.raises(KeyboardInterrupt):
        run(crew, tasks(8), interrupted)
    assert len(kept.indices) == 1  # of the other worker, whose answer lay there


def test_a_full_disk_ends_the_work(kept):
    def full(task, parts):
        raise OutputError("No space left on device")

    crew = FakeCrew(2)
    with pytest.raises(OutputError):
        run(crew, tasks(8), full)


def test_workers_that_end_when_they_open_a_network_are_not_started_for_ever(kept):
    crew = FakeCrew(2, lambda worker, request: Died("exit code 1: no memory"))
    with pytest.raises(WorkersError, match="3 workers ended when they opened the network: exit code 1: no memory"):
        run(crew, tasks(8), kept)
    assert len(crew.started) <= 4


def test_a_machine_that_cannot_run_the_code_is_left_out_unless_it_is_the_last(kept):
    def does(worker, request):
        return Failed(request.key, MachineError("no avx2"), "") if worker.number == 0 else None

    crew, notes = FakeCrew(2, does), Notes()
    run(crew, tasks(6), kept, notes)
    assert sorted(kept.indices) == list(range(6))
    assert crew.shards.keys() == {1}
    assert notes.lines == ["the worker worker 0 cannot take part: no avx2"]
    crew = FakeCrew(2, lambda worker, request: Failed(request.key, MachineError("no avx2"), ""))
    with pytest.raises(MachineError, match="no avx2"):
        run(crew, tasks(6), kept)


def test_a_task_for_a_kind_of_processor_goes_there_or_is_left_out(kept):
    crew = FakeCrew(3)
    start = crew.start

    def start_of_kind():
        worker = start()
        worker.cpu = ("Zen 1", "Zen 5", "Zen 1")[worker.number]
        return worker

    crew.start = start_of_kind
    spread = Spread(crew, Notes())
    spread.run(job(), tasks(6), kept)
    assert spread.cpus() == ["Zen 1", "Zen 5"]
    kept.indices.clear(), kept.cpus.clear()
    crew.shards.clear()
    work = [*tasks(1, cpu="Zen 5"), *tasks(1, cpu="Zen 1"), *tasks(1, cpu="none that is here")]
    spread.run(job(), work, kept)
    assert sorted(kept.cpus) == ["Zen 1", "Zen 5"]
    assert crew.shards[1] == [0]


def test_without_any_worker_it_says_so_and_gives_up_in_the_end(kept, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(spreading.time, "monotonic", lambda: now_s[0])

    def does(worker, request):
        now_s[0] += 10
        return "later"

    notes = Notes()
    with pytest.raises(WorkersError, match="none of 2 workers was ready within 15 minutes"):
        run(FakeCrew(2, does), tasks(4), kept, notes)
    assert 10 < len(notes.lines) < 16
    assert notes.lines[0] == "waiting for workers: none of 2 is ready yet"
