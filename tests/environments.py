"""Commands where something is missing, closed, full or read-only, and what must hold of how they end."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import quantvm

SOURCES = str(Path(quantvm.__file__).parents[1])
LIMIT_S = 560
NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 1000)

    def forward(self, x):
        return self.dequant(self.linear(self.conv(self.quant(x)).mean((2, 3))))

def network():
    return Network().eval()
"""
OWN = ("own_network:network", "--input-shape", "1,3,32,32")
FEW = ("--calibration-samples", "4")
COMMANDS: dict[str, tuple[str, ...]] = {
    "list": ("list", "models"),
    "list json": ("list", "ops", "--json"),
    "help": ("--help",),
    "usage": ("compile", "--no-such-option"),
    "cache": ("cache", "list"),
    "doctor": ("doctor",),
    "compile": ("compile", *OWN, *FEW, "-o", "OUT/model.qvm"),
    "diff": ("diff", *OWN, *FEW, "--num-samples", "1", "--out", "OUT/diff"),
    "run": ("run", "--model", *OWN, *FEW, "--num-samples", "4", "--out", "OUT/run"),
    "tune": ("tune", *OWN, "--threads", "1", "-o", "OUT/schedules.json"),
    "bench": ("bench", "--model", *OWN, *FEW, "--engines", "tvm,torch_fbgemm", "--seconds", "0.1", "--rounds", "1",
              "--out", "OUT/bench"),
}  # fmt: skip
CHEAP = ("list", "list json", "help", "usage", "cache")


@dataclass
class Place:
    """What a command finds.

    Attributes:
        root: everything of this try.
        environment: its variables.
        streams: what its stdin, stdout and stderr are, by number; captured if they are not here.
        closed: descriptors that are closed when it begins.
        before: called in the process before the command.
    """

    root: Path
    environment: dict[str, str]
    streams: dict[int, int] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    before: list[Callable[[], None]] = field(default_factory=list)

    def folder(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is negative for a signal."""

    code: int
    stdout: str
    stderr: str


def full(name: str) -> Callable[[Place], None]:
    """Makes a folder one that has no room; where nothing may be mounted, no file may be greater than 4 KiB."""

    def make(place: Place) -> None:
        folder = place.folder(name)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            (folder / "filling").write_bytes(bytes(52 << 10))
        else:
            place.before.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))

    return make


def read_only(name: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        folder = place.folder(name)
        bind = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(bind, capture_output=True, check=False).returncode != 0:
            folder.chmod(0o500)

    return make


def without(variable: str) -> Callable[[Place], None]:
    return lambda place: place.environment.pop(variable, None) and None


def having(**variables: str) -> Callable[[Place], None]:
    return lambda place: place.environment.update(variables)


def closing(number: int) -> Callable[[Place], None]:
    return lambda place: place.closed.add(number)


def to_file(number: int, path: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.streams[number] = os.open(path, os.O_WRONLY)

    return make


def to_nobody(number: int) -> Callable[[Place], None]:
    """A pipe that nobody reads from."""

    def make(place: Place) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        place.streams[number] = writing

    return make


def leave(place: Place) -> None:
    """The current folder does not exist any more."""
    gone = place.folder("gone")
    gone.mkdir()

    def before() -> None:
        os.chdir(gone)
        gone.rmdir()

    place.before.append(before)


CONDITIONS: dict[str, Callable[[Place], None]] = {
    "nothing": lambda place: None,
    "full TMPDIR": full("tmp"),
    "full cache": full("cache"),
    "full out": full("out"),
    "read-only TMPDIR": read_only("tmp"),
    "read-only cache": read_only("cache"),
    "read-only out": read_only("out"),
    "read-only HOME": read_only("home"),
    "TMPDIR that is missing": having(TMPDIR="/nonexistent/tmp"),
    "cache that is a device": having(QUANTVM_CACHE="/dev/null"),
    "cache that cannot be": having(QUANTVM_CACHE="/proc/none/cache"),
    "no HOME": without("HOME"),
    "HOME that is missing": having(HOME="/nonexistent"),
    "closed stdin": closing(0),
    "closed stdout": closing(1),
    "closed stderr": closing(2),
    "full stdout": to_file(1, "/dev/full"),
    "full stderr": to_file(2, "/dev/full"),
    "stdout without a reader": to_nobody(1),
    "stderr without a reader": to_nobody(2),
    "ASCII": having(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii"),
    "another locale": having(LC_ALL="tr_TR.ISO-8859-9", LANG="xx"),
    "no columns": having(COLUMNS="0", LINES="0"),
    "odd columns": having(COLUMNS="-5", TERM="dumb"),
    "forced colours": having(FORCE_COLOR="1", TERM="unknown"),
    "no current folder": leave,
    "files of 100 KiB": lambda place: place.before.append(
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))
    ),
    "64 open files": lambda place: place.before.append(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))),
    "cache bytes": having(QUANTVM_CACHE_BYTES="some"),
    "threads": having(TVM_NUM_THREADS="0"),
    "no PATH": having(PATH=""),
}


@contextmanager
def place(conditions: list[str]) -> Iterator[Place]:
    """Yields a place under conditions, and removes it."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="environment-")))
        names = ("tmp", "cache", "out", "home", "work")
        for name in names:
            (root / name).mkdir()
            stack.callback(_unmounted, root / name)
        (root / "work" / "own_network.py").write_text(NETWORK)
        variables = {
            **os.environ, "TMPDIR": str(root / "tmp"), "QUANTVM_CACHE": str(root / "cache"), "HOME": str(root / "home"),
            "PYTHONPATH": os.pathsep.join((SOURCES, str(root / "work"))), "PYTHONWARNINGS": "ignore",
            "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        variables.pop("QUANTVM_CACHE_BYTES", None)
        made = Place(root, variables)
        stack.callback(lambda: [os.close(descriptor) for descriptor in made.streams.values()])
        for name in conditions:
            CONDITIONS[name](made)
        yield made


def _unmounted(folder: Path) -> None:
    while os.path.ismount(folder):  # once for each condition that mounted something on it
        subprocess.run(["umount", str(folder)], check=True)
    if os.access(folder, os.W_OK):
        folder.chmod(0o700)


def start(found: Place, command: str) -> subprocess.Popen[str]:
    """Returns the process of a command in a place; in a session of its own, so that nothing of it is overlooked."""
    arguments = [part.replace("OUT", str(found.folder("out"))) for part in COMMANDS[command]]

    def before() -> None:
        for act in found.before:
            act()
        for number in found.closed:
            os.close(number)

    return subprocess.Popen(
        [sys.executable, "-m", "quantvm", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=found.streams.get(1, subprocess.PIPE),
        stderr=found.streams.get(2, subprocess.PIPE),
        env=found.environment,
        cwd=found.folder("work"),
        text=True,
        errors="replace",
        preexec_fn=before,
        start_new_session=True,
    )


def run(found: Place, command: str, *, signalled: tuple[int, float] | None = None) -> Ended:
    """Returns how a command ended; `signalled` has a signal, and after how many seconds it is sent."""
    with start(found, command) as process:
        if signalled is not None:
            number, after_s = signalled
            deadline_s = time.monotonic() + after_s
            while process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            if process.poll() is None:
                process.send_signal(number)
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Ended(-signal.SIGALRM, "", f"no end after {LIMIT_S} s")
        return Ended(process.returncode, stdout or "", stderr or "")


def problems(
    found: Place, ended: Ended, *, killed: bool = False, signalled: bool = False, is_check: bool = False
) -> list[str]:
    """Returns what must not be of how a command ended, by kind; none if all is well."""
    wrong = []
    codes = {0, 2, 3, 4} | ({130, 143} if signalled else set()) | ({1} if is_check else set())
    if not killed and ended.code not in codes:
        wrong.append(f"exit code {ended.code}")
    if "Traceback" in ended.stderr or "Traceback" in ended.stdout or "Exception ignored" in ended.stderr:
        wrong.append("a stack")
    if "LLVM ERROR" in ended.stderr or "terminate called" in ended.stderr:
        wrong.append("the end of the process in C++")
    is_told = ended.code in (0, 1, 3, 130, 143) or "quantvm:" in ended.stderr or "Error" in ended.stderr
    if not (is_told or killed or 1 in found.streams or 2 in found.streams or 2 in found.closed):
        wrong.append("no message")
    if not killed:
        left = [path.name for path in found.folder("tmp").glob("quantvm-*")]
        left += [path.name for path in found.folder("out").rglob("*.tmp*")]
        if left:
            wrong.append(f"left behind: {', '.join(left)}")
    return wrong
