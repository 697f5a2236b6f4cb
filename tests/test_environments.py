"""What commands do where something is missing, closed, full or read-only, and when they are told to end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantvm.report.schema import EXIT_OUTPUT, EXIT_USAGE

from .environments import CHEAP, COMMANDS, CONDITIONS, SOURCES, place, problems, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts, /dev/full and /proc")
TRIES = int(os.environ.get("QUANTVM_ENVIRONMENT_TRIES", "150"))


@pytest.mark.parametrize(
    ("command", "conditions", "code"),
    [
        ("list", ["full stdout", "no HOME", "no columns"], EXIT_OUTPUT),
        ("list", ["closed stdout", "closed stdin", "cache that is a device"], EXIT_OUTPUT),
        ("list json", ["stdout without a reader", "full stderr"], EXIT_OUTPUT),
        ("list", ["closed stderr", "read-only HOME", "ASCII"], 0),
        ("list", ["no current folder"], EXIT_USAGE),
        ("usage", ["full stdout", "no columns"], EXIT_USAGE),
        ("cache", ["full cache", "full TMPDIR", "stderr without a reader"], 0),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, list) else str(value),
)
def test_commands_end_with_the_code_of_what_happened(command, conditions, code):
    with place(conditions) as found:
        ended = run(found, command)
        assert not problems(found, ended), ended
        assert ended.code == code, ended
        assert command != "usage" or "No such option" in ended.stderr
        if code == EXIT_OUTPUT and 1 in found.closed | {1} and "reader" not in " ".join(conditions):
            assert "quantvm: cannot write the results to stdout" in ended.stderr


SLEEPING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
from quantvm.process import run_command
def command():
    try:
        print("begins", flush=True)
        time.sleep(60)
    finally:
        print("saved", flush=True)
run_command(command)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_what_was_done_is_saved_when_a_command_is_told_to_end(number, code):
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", SLEEPING], **pipes) as process:
        assert process.stdout.readline() == "begins\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "saved\n", "quantvm: interrupted\n")


# ------------------------------------------------------------------ the long search


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_command_in_every_environment(command, condition):
    with place([condition]) as found:
        ended = run(found, command)
        assert not problems(found, ended, is_check=command == "doctor"), ended


@pytest.mark.nightly
def test_random_environments():
    rng = random.Random(14)
    for _ in range(TRIES):
        command = rng.choice([*COMMANDS, *CHEAP])
        conditions = rng.sample(list(CONDITIONS), rng.randint(2, 4))
        with place(conditions) as found:
            ended = run(found, command)
            found_problems = problems(found, ended, is_check=command == "doctor")
            assert not found_problems, (command, conditions, found_problems, ended)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", ["bench", "run", "compile", "tune"])
def test_nothing_stays_after_a_command_that_was_ended(command, number):
    rng = random.Random(f"{command} {number}")
    with place([]) as found:
        for _ in range(4):
            ended = run(found, command, signalled=(number, rng.uniform(0.1, 25)))
            killed = number == signal.SIGKILL and ended.code == -number
            early = ended.code == -number  # before Python had begun
            assert not problems(found, ended, killed=killed or early, signalled=True), ended
            wait_for_workers(str(found.root))
        assert not problems(found, run(found, "compile"))


def wait_for_workers(mark: str, limit_s: float = 10) -> None:
    """Waits until no process has a folder of the place in its environment."""
    deadline_s = time.monotonic() + limit_s
    while names := [pid for pid in processes() if mark in environment_of(pid)]:
        assert time.monotonic() < deadline_s, names
        time.sleep(0.1)


def processes() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdecimal() and int(path.name) != os.getpid()]


def environment_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""
