"""An evaluation that is killed at any moment loses nothing that it had written, and goes on as if nothing happened."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

from .fakes import FakeWorkload, evaluate
from .test_resume import n_seen, run_json, samples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
KILLS = [*range(12), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(12, 100))]
OPTIONS = {"batch_size": 3, "shard_size": 6, "numerics": ("torch", "integer")}
PHASES = ("before a write", "within a write", "between write and rename", "after a rename")


def killed_at(folder, step, phase):
    """Runs an evaluation in a child that kills itself at its n-th write; returns whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [step]
        write_bytes, replace = Path.write_bytes, Path.replace

        def die_at(here):
            if left[0] == 0 and phase == here:
                os.kill(os.getpid(), signal.SIGKILL)

        def written(path, content):
            die_at("before a write")
            if left[0] == 0 and phase == "within a write":
                write_bytes(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write_bytes(path, content)

        def replaced(path, target):
            die_at("between write and rename")
            found = replace(path, target)
            die_at("after a rename")
            left[0] -= 1
            return found

        try:
            Path.write_bytes, Path.replace = written, replaced
            evaluate(FakeWorkload(), out=folder, **OPTIONS)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a whole run, and how many images its runners saw."""
    folder, fakes = tmp_path_factory.mktemp("undisturbed") / "run", FakeWorkload()
    evaluate(fakes, out=folder, **OPTIONS)
    return folder, n_seen(fakes)


@pytest.mark.parametrize("seed", KILLS)
def test_a_run_that_was_killed_ends_as_an_undisturbed_one(tmp_path, undisturbed, seed):
    whole, n_seen_by_whole = undisturbed
    chosen = random.Random(seed)
    folder, kills = tmp_path / "run", 0
    for _ in range(2):
        kills += killed_at(folder, chosen.randrange(30), PHASES[seed % 4])
    assert kills > 0 or seed % 4 == 1  # the last file is not written by write_bytes
    fakes = FakeWorkload()
    evaluate(fakes, out=folder, **OPTIONS)
    assert run_json(folder) == run_json(whole)
    assert samples(folder).equals(samples(whole))
    assert not list(folder.rglob("*.tmp*"))
    assert n_seen(fakes) <= n_seen_by_whole
