"""What an evaluation checks before any work."""

from __future__ import annotations

from collections.abc import Sequence

from quantvm.data.prepared import PreparedImages
from quantvm.errors import ModelCodeError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.schema import RunRow
from quantvm.options.option import raise_problems
from quantvm.progress import Progress
from quantvm.report.run_folder import RunFolder
from quantvm.workload.head import head
from quantvm.workload.plan import Entry, Plan, models_of, plan_of


def checked_models(config: RunConfig, progress: Progress) -> tuple[Entry, ...]:
    """Returns the models; if a factory raised, its stack goes to the log, if there is to be one."""
    try:
        return models_of(config, progress)
    except ModelCodeError as error:
        if config.out is not None:
            folder = RunFolder(config.out)
            folder.log(f"{error}\n{error.stack()}")
            folder.close()
        raise


def checked_plan(config: RunConfig, entries: Sequence[Entry], images: PreparedImages, progress: Progress) -> Plan:
    """Returns the plan, in which every option, name and image was checked.

    Raises:
        QuantvmError: there are problems; the message lists all problems of the first kind that was found.
    """
    plan = plan_of(config, progress, entries=entries, images=images)
    raise_problems([*_unknown_labels(plan, config), *_missing_references(plan, config)])
    return plan


def run_head(plan: Plan, config: RunConfig, command: str) -> RunRow:
    """Returns run.json without models."""
    return {**head(plan, config, command), "models": [], "agreement": []}


def _unknown_labels(plan: Plan, config: RunConfig) -> list[str]:
    """Returns a sentence for every model of the user's own that has no score for a class of the images."""
    last = max(sample.label for sample in plan.dataset.samples)
    known = [(entry.spec.name, getattr(entry.spec, "n_classes", None)) for entry in plan.entries]
    few = [(name, n) for name, n in known if n is not None and last >= n]
    if config.class_map == "sorted":
        return [
            f"data: {plan.dataset.name} has {last + 1} classes, {name} {n}; use data of {n} classes" for name, n in few
        ]
    return [
        f"data: {plan.dataset.name} has images of class {last} (counted from 0), and {name} has {n} classes; if the "
        "classes of this model are your folders in sorted order, say --class-map sorted, in a run without registered "
        "models"
        for name, n in few
    ]


def _missing_references(plan: Plan, config: RunConfig) -> list[str]:
    """Returns a sentence for every model whose parity is to be checked but that has no reference."""
    if config.check_parity is None:
        return []
    missing = [(entry.spec.name, entry.missing_reference) for entry in plan.entries]
    return [f"check_parity: {name}: {reason}" for name, reason in missing if reason is not None]
