"""What a run folder was made for: `manifest.json`.

A run is taken up again only where nothing differs that decides a number, so a result never mixes numbers of two kinds.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from quantvm.errors import ConfigError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.layout import MANIFEST
from quantvm.jobs.evaluation.schema import CHECKS
from quantvm.report.run_folder import RunFolder, json_bytes
from quantvm.report.schema import CpuRow
from quantvm.storage.regular_files import open_regular
from quantvm.workload.environment import software
from quantvm.workload.plan import Plan

_SCHEMA_VERSION = 1

_FREE = frozenset(
    {
        "models", "num_samples", "flows", "numerics", "data", "calibration_data", "weights", "fp32", "out", "resume",
        "on_bad_image", "image_cache", "workers", "cluster", *CHECKS,
    }
)  # fmt: skip
"""Options that may be others when a run is taken up again: with more models or images it grows, and checks are made
anew. Data and weights are compared by their content."""

_OF_NOW = frozenset({"workers", "cluster"})
"""Options that are not taken from the folder: what can be computed with now need not be what there was then."""


def manifest_of(plan: Plan, config: RunConfig) -> dict[str, Any]:
    """Returns what manifest.json holds for a run.

    `fingerprint` has all that decides a number and is the same for all models; each network and part has its own.
    """
    options = {name: value for name, value in config.as_json().items() if name not in _FREE}
    calibration = "".join(f"{PurePath(str(source)).name}\n" for source in plan.calibration.images)
    fingerprint = {
        **options,
        "threads": plan.machine.threads,
        "data": plan.dataset.name,
        "calibration images": sha256(calibration.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        **_software(),
    }
    return {"schema_version": _SCHEMA_VERSION, "fingerprint": fingerprint, "config": config.as_json()}


def conditions_of_float(plan: Plan, cpu: CpuRow) -> dict[str, Any]:
    """Returns what decides a float model's answers beside its weights, its preprocessing and the images."""
    return {"threads": plan.machine.threads, "batch_size": plan.options.batch_size, "cpu": cpu, **_software()}


def _software() -> dict[str, Any]:
    libraries = software()
    return {"sources of quantvm": libraries.pop("sources of quantvm"), "libraries": libraries}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a run folder; None if it has none.

    Raises:
        ConfigError: it is damaged, or of another version of quantvm.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        with open_regular(path, ConfigError) as file:
            found = json.load(file)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); use another folder with --out") from error
    if not isinstance(found, dict) or found.get("schema_version") != _SCHEMA_VERSION:
        raise ConfigError(f"{path} is of another version of quantvm; use another folder with --out")
    return found


def begin_manifest(folder: RunFolder, config: RunConfig) -> bool:
    """Writes a manifest that has the options alone, so that a run can be taken up before its images are checked.

    Returns:
        Whether it was written; False if the folder has a manifest.

    Raises:
        ConfigError: there is one, and it is damaged or of another version of quantvm.
        OutputError: the folder cannot be written.
    """
    if read_manifest(folder.path) is not None:
        return False
    _write(folder, {"schema_version": _SCHEMA_VERSION, "fingerprint": None, "config": config.as_json()})
    return True


def check_manifest(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Makes sure that the folder's numbers and those of this run may stand together, and writes the manifest.

    Raises:
        ConfigError: something differs that decides a number; the message names all of it.
        OutputError: the folder cannot be written.
    """
    there = read_manifest(folder.path)
    if there is not None and there["fingerprint"] is not None:
        different = list(_differences(there["fingerprint"], manifest["fingerprint"]))
        if different:
            raise ConfigError(
                f"cannot go on in {folder.path}: {'; '.join(different)}. What differs decides the numbers: use the "
                "same options and versions, or another folder with --out"
            )
    _write(folder, manifest)


def _write(folder: RunFolder, manifest: dict[str, Any]) -> None:
    folder.write(MANIFEST, json_bytes(manifest))


def _differences(there: dict[str, Any], now: dict[str, Any], of: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys([*there, *now]):
        before, after = there.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{of}{name}: ")
        elif before != json.loads(json.dumps(after)):
            found.append(f"{of}{name} is {before} there and {after} now")
    return found


def resumed(config: RunConfig) -> RunConfig:
    """Returns the options of a run that is taken up again: those of its folder, replaced by those that are given now.

    An option that has its default value counts as not given; the workers are only those that are given now.

    Args:
        config: with `resume`, the folder.

    Raises:
        ConfigError: the folder holds no run that can be taken up.
    """
    assert config.resume is not None
    manifest = read_manifest(config.resume)
    if manifest is None:
        raise ConfigError(f"resume: {config.resume} holds no {MANIFEST}, so there is no run that can be taken up there")
    defaults = RunConfig().as_json()
    given = {name: value for name, value in config.as_json().items() if value != defaults[name]}
    given.pop("resume")
    kept = {name: value for name, value in manifest["config"].items() if name in defaults and name not in _OF_NOW}
    return RunConfig(**{**kept, **given, "resume": None, "out": config.resume})
