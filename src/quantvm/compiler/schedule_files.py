"""The measured schedules that a compilation uses: those that come with quantvm; the user's own take precedence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.storage.download import cache_dir

if TYPE_CHECKING:
    from quantvm.kernels.schedule.schedules import Schedules


def target_cpu(target: Any) -> str | None:
    """Returns LLVM's name of a TVM target's CPU, or None where the target names none."""
    name = target.attrs.get("mcpu") if hasattr(target.attrs, "get") else None
    return str(name) if name else None


def user_schedules(mcpu: str) -> Path:
    """Returns the file of the user's own schedules for a CPU; it may not exist."""
    return cache_dir() / "schedules" / f"{mcpu}.json"


def schedules_for(target: Any) -> Schedules:
    """Returns the measured schedules of a TVM target's CPU; empty if the CPU was not measured.

    Raises:
        ConfigError: a file is damaged.
    """
    from quantvm.kernels.schedule.schedules import MEASURED, Schedules, read_schedules

    mcpu = target_cpu(target)
    if mcpu is None:
        return Schedules()
    files = [path for path in (MEASURED / f"{mcpu}.json", user_schedules(mcpu)) if path.is_file()]
    return Schedules(record for path in files for record in read_schedules(path).records)
