"""The environment of a run: versions, commit, processor and threads. Reading it imports neither torch nor tvm."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from quantvm.report.schema import CpuRow, EnvironmentRow

if TYPE_CHECKING:
    from quantvm.runtime.target import Machine
from quantvm.storage.digests import sha256_of_sources

_PACKAGES = ("quantvm", "torch", "torchvision", "apache-tvm", "numpy", "pillow", "pyarrow")

# The environment variables that influence what is measured.
_VARIABLES = (
    "TVM_NUM_THREADS",
    "TVM_BIND_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "QUANTVM_CACHE",
    "TORCH_HOME",
)


def installed_version(package: str) -> str | None:
    """Returns the installed version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of every package that takes part in a measurement."""
    return {"python": platform.python_version(), **{package: installed_version(package) for package in _PACKAGES}}


@lru_cache(maxsize=1)
def _digest_of_package() -> str:
    return sha256_of_sources(Path(__file__).parents[1], ("",), ("*.py", "*.json"))


def software() -> dict[str, str | None]:
    """Returns the versions of all that takes part in a measurement, with a digest of quantvm's sources."""
    from quantvm.data.prepared import image_libraries

    return {**versions(), **image_libraries(), "sources of quantvm": _digest_of_package()[:16]}


def git_commit(folder: Path | None = None) -> str | None:
    """Returns the commit of quantvm's checkout, with `+changes` if files differ from it; None outside a checkout."""
    folder = folder or Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # The git on the PATH is meant, as in the user's own shell.
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu() -> CpuRow:
    """Returns the processor's name, its instruction set extensions as far as they matter, and its physical cores."""
    from quantvm.runtime.target import cpu_features, cpu_model, physical_cores

    return {"model": cpu_model(), "features": list(cpu_features()), "physical_cores": physical_cores()}


def use_threads(machine: Machine) -> None:
    """Makes both engines compute with the machine's number of threads from now on."""
    import torch

    # TVM's pool reads the variable when it starts, at the first parallel kernel of the process.
    os.environ["TVM_NUM_THREADS"] = str(machine.threads)
    torch.set_num_threads(machine.threads)


def describe_environment(machine: Machine) -> EnvironmentRow:
    """Returns what run.json says about the machine and the installation."""
    return {
        "versions": versions(),
        "git": git_commit(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "threads": machine.threads,
        "env": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
