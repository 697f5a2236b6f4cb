"""`quantvm report`: the results of a run folder, also of a run that is under way or was broken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantvm.errors import ConfigError, gist
from quantvm.jobs.evaluation.layout import NETWORKS, RUN_JSON, UNITS
from quantvm.jobs.evaluation.network import networks_in
from quantvm.jobs.evaluation.results import Results
from quantvm.jobs.evaluation.schema import ModelRow, RunResult, RunRow, model_row
from quantvm.jobs.evaluation.store import PartStore
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.storage.regular_files import open_regular


def read_run(folder: Path) -> RunResult:
    """Returns what a run folder holds. Models whose work is not finished have the status `unfinished`.

    The folder is only read, so a run in it may be under way.

    Raises:
        ConfigError: it holds no run.
    """
    try:
        return _read(folder, _run_json(folder / RUN_JSON))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the files of {folder} are damaged: {gist(error)}") from error


def _read(folder: Path, run: RunRow) -> RunResult:
    results = Results(PartStore(folder / UNITS), None)
    finished = {
        (row["name"], row["flow"], row["numerics"])
        for row in run["models"]
        if row["n_images"] and not (row["status"] == "error" and run["interrupted"])
    }
    for network in networks_in(folder / NETWORKS):
        for numerics, code in network.by_numerics.items():
            key = (network.model, network.flow, code["numerics"])
            if key in finished:
                results.add(network, numerics)
                continue
            found = results.of(network, numerics)
            if found:
                results.add(network, numerics)
                facts = {**network.facts, **code["facts"], **found, "status": "unfinished"}
                facts["reason"] = f"{found['n_images']:,} of {run['dataset']['n_used']:,} images are done"
                _put(run, key, model_row(network.model, network.flow, facts))
    run["agreement"] = results.agreement() if len({row["flow"] for row in run["models"]}) > 1 else []
    return RunResult(run, results.samples)


def _put(run: RunRow, key: tuple[str, str, str], row: ModelRow) -> None:
    """Puts a row in the place of that of the same model, flow and numerics, or at the end."""
    for index, other in enumerate(run["models"]):
        if (other["name"], other["flow"], other["numerics"]) == key:
            run["models"][index] = row
            return
    run["models"].append(row)


def _run_json(path: Path) -> RunRow:
    try:
        with open_regular(path, ConfigError) as file:
            found: Any = json.load(file)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION or "models" not in found:
        raise ConfigError(f"{path} is not the result of `quantvm run`, or of another version of quantvm")
    return found  # type: ignore[return-value]
