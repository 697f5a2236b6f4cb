"""What this installation can do: versions, processor, threads, engines, and what runs without a network."""

from __future__ import annotations

import os
import shutil

from quantvm.inventory import DataListing, ModelListing, list_data, list_models
from quantvm.options.checks import resolve_threads
from quantvm.options.groups import CompilationOptions
from quantvm.report.schema import CpuRow, ThreadsRow
from quantvm.workload.environment import cpu, git_commit, versions

# TVM links compiled code with the first of these that exists, unless CXX names another.
_LINKERS = ("g++", "clang++", "c++")


class DoctorReport(ThreadsRow):
    """What ``quantvm doctor --json`` prints."""

    versions: dict[str, str | None]
    git: str | None
    cpu: CpuRow
    engines: list[str]
    target: str | None
    cache: str
    models: list[ModelListing]
    data: list[DataListing]
    problems: list[str]


def examine() -> DoctorReport:
    """Returns the state of the installation; `problems` names what keeps the main job from running, and the cure."""
    from quantvm.storage.download import cache_dir

    processor = cpu()
    engines, engine_problems = _engines()
    target, target_problems = _target()
    models, data = list_models(), list_data()
    problems = [*engine_problems, *target_problems, *_linker_problems(), *CompilationOptions().problems()]
    if not any(model["at_hand"] for model in models):
        problems.append("no model's weights are on this machine: run quantvm fetch weights, or install quantvm[sample]")
    if not any(item["at_hand"] for item in data):
        problems.append("no data set is on this machine: run quantvm fetch data sample, or install quantvm[sample]")
    return {
        "versions": versions(),
        "git": git_commit(),
        "cpu": processor,
        "threads": resolve_threads(None, processor["physical_cores"]),
        "engines": engines,
        "target": target,
        "cache": str(cache_dir()),
        "models": models,
        "data": data,
        "problems": problems,
    }


def _engines() -> tuple[list[str], list[str]]:
    try:
        from quantvm.torch_compat import import_torchvision, torch_engines

        import_torchvision()
        engines = list(torch_engines())
    except (ImportError, OSError, RuntimeError) as error:
        return [], [f"torch or torchvision cannot be imported ({error}): install the versions in pyproject.toml"]
    if "fbgemm" not in engines:
        return engines, ["this torch has no engine fbgemm, whose bits are the reference: use a build for x86-64"]
    return engines, []


def _target() -> tuple[str | None, list[str]]:
    try:
        from quantvm.runtime.target import host_target

        return str(host_target()), []
    except (ImportError, OSError, RuntimeError) as error:
        return None, [f"TVM cannot be imported ({error}): install the version in pyproject.toml"]


def _linker_problems() -> list[str]:
    if "CXX" in os.environ or any(shutil.which(linker) for linker in _LINKERS):
        return []
    return ["no C++ linker is on the PATH, so compiled models cannot be saved to files: install g++ or clang"]


def doctor_lines(report: DoctorReport) -> list[str]:
    """Returns the report as text."""
    processor = report["cpu"]
    versions_text = ", ".join(f"{name} {version or 'missing'}" for name, version in report["versions"].items())
    lines = [
        f"versions   {versions_text}",
        f"cpu        {processor['model']}, {processor['physical_cores']} physical cores",
        f"features   {' '.join(processor['features']) or 'none that matter here'}",
        f"threads    {report['threads']}",
        f"engines    {', '.join(report['engines']) or 'none'}",
        f"target     {report['target'] or 'none'}",
        f"cache      {report['cache']}",
        "offline    " + _offline(report),
    ]
    return [*lines, *(f"problem    {problem}" for problem in report["problems"])]


def _offline(report: DoctorReport) -> str:
    models = [model["name"] for model in report["models"] if model["at_hand"]]
    data = [item["name"] for item in report["data"] if item["at_hand"]]
    missing = [model["name"] for model in report["models"] if not model["at_hand"]]
    text = f"{', '.join(models) or 'no model'} on {', '.join(data) or 'no data set'} and on folders of your own"
    return text + (f"; weights to download: {', '.join(missing)}" if missing else "")
