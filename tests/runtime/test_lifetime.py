"""How long code and memory of compiled models stay, what a fork does to them, and that equal models are equal files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import quantvm
from quantvm.compiler.build import BuiltLibrary
from quantvm.errors import CompileError, OutputError, RunError, is_output_failure
from quantvm.runtime import forking
from quantvm.runtime.artifact import Artifact
from tests.quantized_modules import SmallNetwork, image

SHAPE = (3, 19, 17)
LIMIT_S = 60


@pytest.fixture(scope="module")
def compiled():
    """A model whose calls take two threads."""
    torch.backends.quantized.engine = "fbgemm"
    artifact = quantvm.compiler.compile(SmallNetwork(), image(1, *SHAPE), engine="fbgemm", threads=1)
    from quantvm.tvm_compat import use_threads

    if use_threads(2) < 2:  # an earlier test began the pool of this thread with one
        pytest.skip("the pool of this thread has one thread")
    return artifact


@pytest.fixture(scope="module")
def saved(compiled, tmp_path_factory):
    return compiled.save(tmp_path_factory.mktemp("saved") / "small.qvm")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mappings() -> list[str]:
    return [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]


# ------------------------------------------------------------------ loading and unloading


def load_and_run(path, count):
    x_f32 = image(2, *SHAPE).numpy()
    for _ in range(count):
        artifact = quantvm.load(path)
        artifact(x_f32)
        del artifact
    gc.collect()


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.nightly)])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_nobody_holds_is_unloaded(saved, count):
    load_and_run(saved, 3)
    before, before_bytes = mappings(), resident_bytes()
    load_and_run(saved, count)
    assert len(mappings()) <= len(before)
    assert not [name for name in mappings() if "model.so" in name]
    assert resident_bytes() - before_bytes < 4 << 20  # one load maps 60 KB, and 500 would be 30 MB


def test_outputs_outlive_the_model(saved):
    x_f32 = image(2, *SHAPE).numpy()
    artifact = quantvm.load(saved)
    y_f32 = artifact(x_f32)
    kept = y_f32.copy()
    del artifact
    gc.collect()
    assert np.array_equal(y_f32, kept)


# ------------------------------------------------------------------ forks


def in_child(work):
    """Returns the exit status of a forked process that does some work, or the signal that ended it after a time."""
    time.sleep(0.3)  # TVM's threads fall asleep
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT_S)
        try:
            status = work() or 0
        except BaseException:  # noqa: BLE001 - the test's stack must not go on in the child
            traceback.print_exc()
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_model_works_after_a_fork(compiled):
    x_f32 = image(3, *SHAPE).numpy()
    expected_f32 = compiled(x_f32)

    def same():
        return 0 if np.array_equal(compiled(x_f32), expected_f32) else 1

    def same_in_threads():
        found = []
        threads = [threading.Thread(target=lambda: found.append(same())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found != [0, 0] or same()

    for work in (same, same_in_threads, lambda: in_child(same)):
        assert in_child(work) == 0
    assert same() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_ends_as_any_other():
    """The system ends TVM's threads at exit: those of the parent do not exist in the child."""
    script = (
        "import os, sys, time\n"
        "os.environ['TVM_NUM_THREADS'] = '2'\n"
        "from quantvm.tvm_compat import use_threads\n"
        "import quantvm.runtime.forking, signal, tvm\n"
        "assert use_threads(2) == 2\n"
        "time.sleep(0.5)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        f"    signal.alarm({LIMIT_S})\n"
        "    assert tvm.runtime.num_threads() == 2\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
    )
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    code = f"import sys\nsys.modules['torch'] = None\n{script}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=LIMIT_S, check=False)
    assert done.returncode == 0


def call(artifact, x_f32):
    return artifact(x_f32)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_pool_of_forked_processes_runs_a_model(compiled):
    inputs_f32 = [image(1, *SHAPE, seed=seed).numpy() for seed in range(4)]
    expected_f32 = [compiled(x_f32) for x_f32 in inputs_f32]
    with multiprocessing.get_context("fork").Pool(2, initializer=_keep, initargs=(compiled,)) as pool:
        found_f32 = pool.map_async(_call_kept, inputs_f32).get(timeout=LIMIT_S)
    for found, expected in zip(found_f32, expected_f32, strict=True):
        assert np.array_equal(found, expected)


def _keep(artifact):
    global _kept
    _kept = artifact


def _call_kept(x_f32):
    return _kept(x_f32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_the_calls_of_other_threads(compiled):
    x_f32 = image(16, *SHAPE).numpy()
    expected_f32 = compiled(x_f32)
    go_on = True

    def calls():
        while go_on:
            compiled(x_f32)

    thread = threading.Thread(target=calls)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: not np.array_equal(compiled(x_f32), expected_f32)) == 0
    finally:
        go_on = False
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_where_threads_cannot_be_renewed_the_child_is_told(compiled, monkeypatch):
    x_f32 = image(1, *SHAPE).numpy()
    compiled(x_f32)
    monkeypatch.setattr("quantvm.tvm_compat.renew_thread_pool", lambda: False)

    def refused():
        with pytest.raises(RunError, match="method spawn or forkserver"):
            compiled(x_f32)

    assert in_child(refused) == 0
    assert not forking._broken_threads
    compiled(x_f32)


# ------------------------------------------------------------------ a full disk


def limit_files(size_bytes):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("size_bytes", [1 << 10, 40 << 10, 1 << 20])
def test_without_room_for_objects_saving_is_an_error(compiled, tmp_path, size_bytes):
    """LLVM would end the process."""
    library = BuiltLibrary(
        compiled.library.executable, compiled.library.kernel_of
    )  # for which no code was generated yet
    anew = Artifact(library, compiled.signature, compiled.report, compiled.requirements)

    def refused():
        limit_files(size_bytes)
        with pytest.raises(CompileError, match=r"(?s)bytes are free, and up to .*TMPDIR") as error:
            anew.save(tmp_path / "model.qvm")
        assert is_output_failure(error.value)
        compiled(image(1, *SHAPE))

    compiled.prepare()

    assert in_child(refused) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_without_room_for_the_library_saving_and_loading_are_errors(compiled, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("quantvm.tvm_compat.room_bytes", lambda folder: None)

    def refused():
        limit_files(4096)
        with pytest.raises(OutputError, match=r"cannot unpack to .*too large.*TMPDIR"):
            quantvm.load(saved)
        with pytest.raises(OutputError, match=r"cannot write .*too large"):
            opened.save(tmp_path / "model.qvm")

    opened = quantvm.load(saved)
    monkeypatch.setattr(opened.library, "write", lambda path: path.write_bytes(bytes(4096)))
    assert in_child(refused) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", ["No space left on device", "File size limit exceeded"])
def test_a_linker_without_room(compiled, tmp_path, monkeypatch, said):
    linker = tmp_path / "c++"
    linker.write_text(f"#!/bin/sh\necho 'ld: final link failed: {said}'\nexit 1\n")
    linker.chmod(0o700)
    monkeypatch.setenv("CXX", str(linker))
    with pytest.raises(CompileError, match=rf"failed: .*{said}; the folder for temporary files is .*TMPDIR") as error:
        compiled.save(tmp_path / "model.qvm")
    assert is_output_failure(error.value)


# ------------------------------------------------------------------ equal models are equal files


def test_the_same_model_is_the_same_file(saved, tmp_path):
    script = (
        "import sys, torch, quantvm.compiler\n"
        "from tests.quantized_modules import SmallNetwork, image\n"
        "torch.backends.quantized.engine = 'fbgemm'\n"
        f"model = quantvm.compiler.compile(SmallNetwork(), image(1, *{SHAPE}), engine='fbgemm', threads=1)\n"
        "model.save(sys.argv[1])\n"
    )
    other = tmp_path / "some folder" / "other.qvm"
    other.parent.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TMPDIR": str(other.parent), "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", script, str(other)], env=environment, check=True, timeout=5 * LIMIT_S)
    assert other.read_bytes() == saved.read_bytes()
    assert [path.name for path in other.parent.iterdir()] == ["other.qvm"]
    assert quantvm.load(saved).save(tmp_path / "again.qvm").read_bytes() == saved.read_bytes()
