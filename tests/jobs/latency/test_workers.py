"""Worker processes, real ones, with engines that need neither torch nor tvm."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from quantvm.jobs.child_process import environment_of_child
from quantvm.jobs.latency import engine_worker
from quantvm.jobs.latency.engine_kinds import ENGINES, EngineKind
from quantvm.jobs.latency.engines import Job, make_engine
from quantvm.jobs.latency.workers import ProcessWorker, WorkerError
from quantvm.runtime.target import Machine

ENGINE = """
import os, subprocess, sys, time
import numpy as np

class Toy:
    def __init__(self, job):
        print("a library says hello")
        self.threads, self.folder = job.threads, job.folder

    def build(self):
        return {"build_s": 1.0, "artifact_bytes": int(os.environ["OMP_NUM_THREADS"] + os.environ["TVM_NUM_THREADS"])}

    def load(self, batch):
        if batch == 13:
            raise RuntimeError("thirteen images")
        if batch == 14:
            print("out of luck", file=sys.stderr)
            os._exit(7)
        if batch == 15:
            time.sleep(60)
        if batch == 16:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            written = os.path.join(self.folder, "child.new")
            print(child.pid, file=open(written, "w"), flush=True)
            os.rename(written, os.path.join(self.folder, "child.pid"))
            time.sleep(60)
        return (lambda x_f32: x_f32.reshape(len(x_f32), -1) * 2), {"load_s": 0.5}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Returns the job of an engine that a module outside of quantvm defines."""
    (tmp_path / "toy_engine.py").write_text(ENGINE)
    # A worker finds its engine by name, as it would a registered one.
    (tmp_path / "sitecustomize.py").write_text(
        "from quantvm.jobs.latency.engine_kinds import ENGINES, EngineKind\n"
        "ENGINES['toy'] = EngineKind('toy_engine:Toy')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    np.save(tmp_path / "input.npy", np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2))
    return Job(engine="toy", model="any", folder=str(tmp_path), threads=3)


@pytest.fixture
def worker(toy):
    worker = ProcessWorker(toy, limit_s=60)
    yield worker
    worker.close()


def test_a_worker_builds_loads_measures_and_tells_its_memory(worker, toy):
    assert worker.request("build") == {"build_s": 1.0, "artifact_bytes": 33}
    found = worker.request("load", batch=1)
    assert found["load_s"] == 0.5
    assert found["first_call_ms"] > 0
    assert np.load(toy.output_path(1)).tolist() == [[2.0 * i for i in range(12)]]
    assert worker.request("warm_up", batch=1, calls=2, seconds=0) == {}
    assert len(worker.request("measure", batch=1, calls=4, seconds=0)["samples_ms"]) == 4
    memory = worker.request("memory")
    assert memory["peak_rss_bytes"] > 2**20
    assert memory["inference_peak_rss_bytes"] is None or memory["inference_peak_rss_bytes"] > 2**20


def test_the_memory_of_the_parent_is_not_the_workers(toy):
    ballast = np.ones(2**27, dtype=np.uint8)  # 128 MiB that the system counts into a child until it is another program
    worker = ProcessWorker(toy)
    try:
        worker.request("load", batch=1)
        peak_bytes = worker.request("memory")["peak_rss_bytes"]
    finally:
        worker.close()
    assert peak_bytes < ballast.nbytes if sys.platform == "linux" else peak_bytes > 0


def test_an_engine_that_raises_is_told_and_the_process_lives_on(worker):
    with pytest.raises(WorkerError, match="RuntimeError: thirteen images") as caught:
        worker.request("load", batch=13)
    assert "toy_engine.py" in caught.value.details
    assert worker.request("load", batch=2)["load_s"] == 0.5


def test_a_process_that_ends_is_an_error_with_its_last_words(worker):
    with pytest.raises(WorkerError, match="ended at 'load' with exit code 7: out of luck"):
        worker.request("load", batch=14)
    with pytest.raises(WorkerError, match="exit code 7"):
        worker.request("build")


def test_a_process_that_is_killed_is_an_error(worker):
    worker.request("build")
    threading.Timer(0.2, os.kill, (worker._process.pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerError, match="signal 9"):
        worker.request("load", batch=15)


def test_what_hangs_is_ended(toy):
    worker = ProcessWorker(toy, limit_s=20)
    worker.request("build")
    worker._limit_s = 0.2
    try:
        with pytest.raises(WorkerError, match="no answer to 'load'"):
            worker.request("load", batch=15)
    finally:
        worker.close()


def test_a_worker_does_nothing_between_requests_and_ends_with_its_parent(toy):
    program = (
        "import json, sys, time\n"
        "from quantvm.jobs.latency.engines import Job\n"
        "from quantvm.jobs.latency.workers import ProcessWorker\n"
        "worker = ProcessWorker(Job(**json.loads(sys.argv[1])))\n"
        "worker.request('build')\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    import dataclasses

    arguments = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(toy))]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert _ends(pid)


def _ends(pid, limit_s=20):
    ended = threading.Event()
    for _ in range(int(limit_s / 0.05)):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":  # nobody collects an orphan here
                    return True
        except OSError:
            return True
        ended.wait(0.05)
    return False


def test_inputs_lie_where_no_engine_copies_them():
    for n in (1, 3, 7):
        x_f32 = np.random.default_rng(n).random((n, 3, 5, 5), dtype=np.float32)
        copy_f32 = engine_worker.aligned(x_f32)
        assert copy_f32.ctypes.data % 64 == 0
        assert copy_f32.flags.writeable
        assert copy_f32.flags.c_contiguous
        assert np.array_equal(copy_f32, x_f32)


def test_an_unknown_request_is_answered():
    found = engine_worker.answer(lambda: object(), {"op": "nonsense"})
    assert not found["ok"]
    assert "AttributeError" in found["error"]
    assert found["is_output_failure"] is False


def test_a_worker_says_that_a_file_could_not_be_written():
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    assert engine_worker.answer(full, {"op": "build"})["is_output_failure"] is True


def test_modules_that_are_not_installed_are_named(monkeypatch):
    assert EngineKind("nowhere:None", modules=("json", "no_such_module")).missing() == ("no_such_module",)
    monkeypatch.setitem(ENGINES, "toy", EngineKind("tests.jobs.latency.test_workers:Toy"))
    assert isinstance(make_engine(Job("toy", "any", "/nowhere", 1)), Toy)


class Toy:
    def __init__(self, job):
        self.job = job


def test_every_library_gets_the_thread_count(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    environment = environment_of_child(Machine("native", 2))
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")} == {"2"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_parent_and_so_does_what_it_started(toy, tmp_path, number):
    script = (
        "import dataclasses, json, sys\n"
        "from quantvm.jobs.latency.engines import Job\n"
        "from quantvm.jobs.latency.workers import ProcessWorker\n"
        "worker = ProcessWorker(Job(**json.loads(sys.argv[1])))\n"
        "worker.request('build')\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.request('load', batch=16)\n"
    )
    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(toy))]
    environment = environment_of_child(Machine("native", 1))  # with this quantvm, wherever another may be installed
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker_pid = int(parent.stdout.readline())
        child_file = tmp_path / "child.pid"
        wait_until(child_file.is_file)
        pids = [worker_pid, int(child_file.read_text())]
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(timeout=30)
        wait_until(lambda: not any(is_alive(pid) for pid in pids))


def wait_until(condition, limit_s=20):
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
