"""Runs pytest with guarded memory: SIDES is `exact`, or `left,right`, where kernel tests call a kernel once a side."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import SIDES, VARIABLE


def main(chosen: str, arguments: list[str]) -> int:
    """Returns pytest's exit code, or that of the signal that ended it."""
    unknown = set(chosen.split(",")) - set(SIDES)
    if unknown or ("exact" in chosen and chosen != "exact"):
        raise SystemExit(f"sides: {chosen!r}, expected left, right, left,right, or exact")
    with tempfile.TemporaryDirectory(prefix="quantvm-guard-") as folder:
        built = Path(folder, "guarded_memory.so")
        source = Path(__file__).with_name("guarded_memory.c")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(built), VARIABLE: chosen}
        command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "tests.guarded.plugin", *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
