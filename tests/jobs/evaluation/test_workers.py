"""Evaluations whose units are computed by workers: real networks, real processes, and the bytes of one process."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import quantvm
from quantvm.errors import ConfigError
from quantvm.jobs.child_process import environment_of_child
from quantvm.jobs.evaluation import cluster, networks, unit_worker, workers
from quantvm.jobs.evaluation.crew import ProcessCrew, ProcessWorker
from quantvm.jobs.evaluation.float_answers import FloatAnswers
from quantvm.jobs.evaluation.kept_programs import NotKeptError
from quantvm.jobs.evaluation.parts import part_of_bytes
from quantvm.jobs.evaluation.unit_messages import ShardTask
from quantvm.jobs.evaluation.unit_worker import UnitWorker
from quantvm.runtime.target import Machine
from tests.workload.own_models import write_factories, write_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
NAME = "factories_for_workers"
TIMES = {
    "cpus",
    "duration_s",
    "started_at",
    "command",
    "import_s",
    "compile_s",
    "load_s",
    "cached",
    "latency_ms",
    "config",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    write_factories(folder, NAME)
    write_images(folder / "images", each=8)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop(NAME, None)


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)


def evaluate(place, folder, **options):
    known = {
        "models": f"{NAME}:floating", "input_shape": (1, 3, 32, 32), "data": place / "images", "class_map": "sorted",
        "threads": 1, "batch_size": 2, "shard_size": 4,
    }  # fmt: skip
    return quantvm.evaluate(**known | {"out": folder} | options)


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    """A run in one process, of six shards."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TVM_NUM_THREADS", raising=False)
        assert evaluate(place, folder).exit_code == 0
    return folder


def without_units(alone, folder):
    """Returns a new run folder that has the networks only."""
    shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("units"))
    return folder


def of_run(folder):
    run = json.loads((folder / "run.json").read_text())
    return [{name: value for name, value in model.items() if name not in TIMES} for model in run["models"]]


def parts_of(folder):
    """Returns the rows of each part by its path."""
    found = {}
    for path in sorted((folder / "units").rglob("[0-9]*.parquet")):
        part = part_of_bytes(path.read_bytes())
        columns = {name: values.tobytes() for name, values in part.columns.items()}
        found[str(path.relative_to(folder))] = (part.ids, part.labels.tobytes(), columns)
    return found


def assert_equal(folder, alone):
    assert of_run(folder) == of_run(alone)
    assert parts_of(folder) == parts_of(alone)
    assert pq.read_table(folder / "samples.parquet").equals(pq.read_table(alone / "samples.parquet"))


class WorkerHere:
    """A worker that is in this process."""

    def __init__(self, name, cpu):
        self.name, self.cpu, self.pending, self.tasks, self.inner = name, cpu, [], [], UnitWorker()

    def send(self, request):
        if isinstance(request, ShardTask):
            self.tasks.append(request)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unit_worker, "cpu_model", lambda: self.cpu)
            self.pending.append(self.inner.answer(request))

    def close(self):
        self.pending.clear()


class CrewHere:
    def __init__(self, *cpus):
        self.size, self.cpus, self.workers = len(cpus), cpus, []

    def start(self):
        n = len(self.workers)
        self.workers.append(WorkerHere(f"worker {n}", self.cpus[n]))
        return self.workers[-1]

    def answers(self, workers, timeout_s):
        for worker in list(workers):
            if worker.pending:
                yield worker, worker.pending.pop(0)

    def close(self):
        pass


@pytest.fixture
def crew_here(monkeypatch):
    """Has evaluations use workers in this process, on processors of these names."""

    def use(*cpus):
        crew = CrewHere(*cpus)
        monkeypatch.setattr(workers, "crew_of", lambda config, machine: crew)
        return crew

    return use


def test_processes_give_the_bytes_of_one_process_though_one_of_them_is_killed(place, alone, tmp_path, monkeypatch):
    sent, pids, send = [], set(), ProcessWorker.send

    def killing(worker, request):
        send(worker, request)
        pids.add(worker._process.pid)
        if isinstance(request, ShardTask):
            sent.append(request.shard.index)
            if len(sent) == 3:
                os.kill(worker._process.pid, signal.SIGKILL)

    monkeypatch.setattr(ProcessWorker, "send", killing)
    assert evaluate(place, tmp_path / "run", workers=2).exit_code == 0
    assert_equal(tmp_path / "run", alone)
    assert sorted(sent) == sorted([*range(6), sent[2]])  # that shard twice, no other
    assert "(signal 9); its shard" in (tmp_path / "run" / "log.txt").read_text()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_resumed_run_of_workers_computes_only_what_is_missing(place, alone, tmp_path, crew_here):
    crew, folder = crew_here("any", "any"), tmp_path / "run"
    shutil.copytree(alone, folder)
    gone = [path for index in (2, 5) for path in (folder / "units").rglob(f"{index:05}.parquet")]
    for path in gone:
        path.unlink()
    evaluate(place, folder, workers=2)
    assert len(gone) == 4
    assert_equal(folder, alone)
    assert [len(worker.tasks) for worker in crew.workers] == [1, 1]
    crew = crew_here("any")
    evaluate(place, folder, workers=1)
    assert crew.workers == []  # nothing is missing, so none is started


def test_kinds_of_cpu_are_compared_and_each_part_says_which_computed_it(place, alone, tmp_path, crew_here, monkeypatch):
    crew_here("Zen 1", "Zen 5")
    answers = []
    monkeypatch.setattr(FloatAnswers, "add", lambda self, shard, fingerprint, part: answers.append(part))
    (row,) = evaluate(place, without_units(alone, tmp_path / "same"), workers=2).run["models"]
    assert answers == []  # for later runs on this machine, only what its own kind of CPU answered is kept
    assert row["cpus"] == ["Zen 1", "Zen 5"]
    assert row["same_bits"] == {"cpus": ["Zen 1", "Zen 5"], "n_images": 4, "tvm": 4, "torch": 4}
    assert parts_of(tmp_path / "same") == parts_of(alone)
    assert "2 kinds: TVM 4 / 4, PyTorch 4 / 4" in (tmp_path / "same" / "report.md").read_text()

    real = unit_worker.engines_of

    def other_bits(job):
        """PyTorch has other bits on the Zen 5."""
        engines = real(job)
        if unit_worker.cpu_model() == "Zen 5":
            run = engines.torch.run
            monkeypatch.setattr(engines.torch, "run", lambda x_f32: run(x_f32) + 1)
        return engines

    monkeypatch.setattr(unit_worker, "engines_of", other_bits)
    crew_here("Zen 1", "Zen 5")
    (row,) = evaluate(place, without_units(alone, tmp_path / "other"), workers=2).run["models"]
    assert (row["same_bits"]["tvm"], row["same_bits"]["torch"]) == (4, 0)
    assert "PyTorch's raw outputs of 4 of 4 images differ" in (tmp_path / "other" / "report.md").read_text()


def test_what_workers_cannot_open_is_computed_by_the_driver(place, alone, tmp_path, crew_here, monkeypatch):
    def kept_program(program, folder):
        raise NotKeptError("no trace")

    monkeypatch.setattr(networks, "kept_program", kept_program)
    crew, folder = crew_here("any"), without_units(alone, tmp_path / "float")
    assert evaluate(place, folder, workers=1).exit_code == 0
    assert_equal(folder, alone)
    ((task,),) = [{tuple(task.wanted) for task in worker.tasks} for worker in crew.workers]
    assert [side.numerics for side in task] == ["torch"]  # the float model ran here
    assert "the float model runs in this process, not in the workers: no trace" in (folder / "log.txt").read_text()
    crew, folder = crew_here("any"), tmp_path / "all"
    assert evaluate(place, folder, workers=1).exit_code == 0
    assert_equal(folder, alone)
    assert crew.workers == []
    assert "this process computes it" in (folder / "log.txt").read_text()


def test_a_run_without_a_folder_has_workers_too(place, alone, crew_here):
    crew = crew_here("any")
    (row,) = evaluate(place, None, workers=1).run["models"]
    assert row["parity"] == of_run(alone)[0]["parity"]
    assert len(crew.workers) == 1


def test_an_error_in_a_worker_is_the_models_error_with_its_stack_in_the_log(
    place, alone, tmp_path, crew_here, monkeypatch
):
    def raises(job):
        raise KeyError("scale")

    monkeypatch.setattr(unit_worker, "engines_of", raises)
    crew_here("any")
    result = evaluate(place, without_units(alone, tmp_path / "run"), workers=1)
    assert result.exit_code == 3
    assert result.run["models"][0]["reason"] == "KeyError: 'scale'"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "in raises" in log
    assert "in worker 0" in log


def test_a_machine_with_other_versions_is_refused(place, alone, tmp_path, crew_here, monkeypatch):
    monkeypatch.setattr(unit_worker, "installed_software", lambda: {"torch": "2.12.0"})
    crew_here("any")
    result = evaluate(place, without_units(alone, tmp_path / "run"), workers=1)
    assert result.exit_code == 3
    assert "torch 2.12.0 instead of 2.13" in result.run["models"][0]["reason"]


def test_a_process_ends_with_its_driver():
    script = (
        "import sys\n"
        "from quantvm.jobs.evaluation.crew import ProcessCrew\n"
        "from quantvm.runtime.target import Machine\n"
        "worker = ProcessCrew(1, Machine('native', 1)).start()\n"
        "print(worker._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_of_child(Machine("native", 1)),
    ) as driver:
        pid = int(driver.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        driver.kill()
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_how_a_process_ended_is_told():
    crew = ProcessCrew(2, Machine("native", 1))
    killed, failed = crew.start(), crew.start()
    try:
        os.kill(killed._process.pid, signal.SIGTERM)
        killed.send("a request that nobody reads")
        failed._requests.send_bytes(b"nothing that can be unpickled")
        answers = {}
        while len(answers) < 2:
            answers |= {worker: answer.reason for worker, answer in crew.answers({killed, failed} - set(answers), 30)}
        assert answers[killed] == "signal 15"
        assert answers[failed].startswith("exit code 1: _pickle.UnpicklingError")
    finally:
        killed.close()
        failed.close()


@pytest.fixture
def ray_cluster():
    """Returns a function that starts a Ray cluster of so many machines, with one CPU each, on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    clusters = []

    def start(n):
        clusters.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}))
        return clusters[-1], [clusters[-1].add_node(num_cpus=1) for _ in range(n - 1)]

    yield start
    for each in clusters:
        each.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_actors_of_a_cluster_give_the_bytes_of_one_process(place, alone, tmp_path, ray_cluster):
    machines, _ = ray_cluster(1)
    before = signal.getsignal(signal.SIGTERM)
    assert evaluate(place, without_units(alone, tmp_path / "run"), cluster=machines.address).exit_code == 0
    assert_equal(tmp_path / "run", alone)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.nightly
def test_a_machine_of_the_cluster_ends_with_finished_and_unfinished_shards(
    place, alone, tmp_path, ray_cluster, monkeypatch
):
    machines, (second,) = ray_cluster(2)
    sent, killed, send = {}, [], cluster.RayWorker.send

    def killing(worker, request):
        send(worker, request)
        if isinstance(request, ShardTask):
            sent.setdefault(worker, []).append(request.shard.index)
            if len(sent) == 2 and min(map(len, sent.values())) == 2 and not killed:
                killed.append(second)
                machines.remove_node(second, allow_graceful=False)

    monkeypatch.setattr(cluster.RayWorker, "send", killing)
    folder = tmp_path / "run"
    assert evaluate(place, folder, batch_size=1, shard_size=1, cluster=machines.address).exit_code == 0
    assert killed
    one = tmp_path / "one"
    assert evaluate(place, one, batch_size=1, shard_size=1).exit_code == 0
    assert_equal(folder, one)
    again = [index for found in sent.values() for index in found]
    assert sorted(set(again)) == list(range(24))
    assert 24 < len(again) <= 26  # what the machine had not finished was done again, nothing else
    assert "is done again" in (folder / "log.txt").read_text()


def test_files_of_a_network_go_to_a_machine_that_does_not_see_the_run_folder(
    place, alone, tmp_path, crew_here, monkeypatch
):
    jobs = []
    real = unit_worker.engines_of
    monkeypatch.setattr(unit_worker, "engines_of", lambda job: jobs.append(job) or real(job))
    crew_here("any")
    monkeypatch.setattr(UnitWorker, "_open", _opened_elsewhere(tmp_path / "machine", UnitWorker._open))
    folder = without_units(alone, tmp_path / "run")
    assert evaluate(place, folder, workers=1).exit_code == 0
    assert_equal(folder, alone)
    assert {path.parent.parent for job in jobs for path in job.files} == {tmp_path / "machine"}


def _opened_elsewhere(machine, open_here):
    def opened(worker, job):
        machine.mkdir()
        files = {path: path.read_bytes() for path in job.files}
        open_here(worker, cluster.unpacked(job, files, machine))

    return opened


def test_a_cluster_needs_ray_and_must_be_there(tmp_path, place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'quantvm\[cluster\]'"):
            evaluate(place, None, cluster="auto")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="nobody listens at 127"):
            cluster._connect(None, f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_driver_that_is_ended_leaves_no_process_and_goes_on_later(place, alone, tmp_path, number, code):
    folder = without_units(alone, tmp_path / "run")
    environment = environment_of_child(Machine("native", 1))
    environment["PYTHONPATH"] += f"{os.pathsep}{place}"
    command = [
        sys.executable, "-m", "quantvm", "run", "--model", f"{NAME}:floating", "--input-shape", "1,3,32,32",
        "--data", str(place / "images"), "--class-map", "sorted", "--threads", "1", "--batch-size", "2",
        "--shard-size", "4", "--workers", "2", "--out", str(folder),
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as driver:
        while not list(folder.glob("units/*/*.parquet")):
            assert driver.poll() is None
            time.sleep(0.001)
        driver.send_signal(number)
        told = driver.stderr.read()
    assert driver.returncode == code
    deadline_s = time.monotonic() + 30
    while _processes_with("quantvm.jobs.evaluation.worker_process", str(place)):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    if number != signal.SIGKILL:
        assert "--resume" in told
        assert "--workers 2" in told
    assert evaluate(place, folder).exit_code == 0
    assert_equal(folder, alone)


def _processes_with(module, variable):
    """Returns the processes that run a module and have a text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if module in (path / "cmdline").read_text() and variable in (path / "environ").read_text():
                found.append(path.name)
    return found


@pytest.mark.nightly
def test_a_shard_that_ends_three_processes_is_an_error_that_names_its_images(place, alone, tmp_path, monkeypatch):
    send = ProcessWorker.send

    def killing(worker, request):
        send(worker, request)
        if isinstance(request, ShardTask) and request.shard.index == 1:
            os.kill(worker._process.pid, signal.SIGSEGV)

    monkeypatch.setattr(ProcessWorker, "send", killing)
    folder = without_units(alone, tmp_path / "run")
    result = evaluate(place, folder, workers=2)
    assert result.exit_code == 3
    (row,) = result.run["models"]
    assert (row["status"], row["n_images"], row["n_fp32_images"]) == ("error", 20, 20)
    assert row["reason"].startswith("shard 1 (4 images: ")
    assert row["reason"].endswith(" and 1 more) ended 3 workers, the last one with signal 11")
    monkeypatch.setattr(ProcessWorker, "send", send)
    assert evaluate(place, folder).exit_code == 0  # tried again, it is computed
    assert_equal(folder, alone)
