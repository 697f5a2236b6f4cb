"""What run.json and bench.json begin with."""

from __future__ import annotations

from datetime import datetime, timezone

from quantvm.options.groups import DataOptions
from quantvm.report.schema import SCHEMA_VERSION, HeadRow
from quantvm.workload.environment import describe_environment
from quantvm.workload.plan import Plan


def head(plan: Plan, config: DataOptions, command: str) -> HeadRow:
    """Returns the beginning of a result.

    Args:
        plan: of the job.
        config: all options of the job.
        command: what the user called.
    """
    dataset, calibration = plan.dataset, plan.calibration
    bad = [{"path": str(bad.source), "reason": bad.reason} for bad in (*dataset.bad, *calibration.bad)]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "duration_s": 0.0,
        "interrupted": False,
        "config": {**config.as_json(), "threads": plan.machine.threads},
        "environment": describe_environment(plan.machine),
        "seed": config.seed,
        "dataset": {
            "name": dataset.name,
            "root": str(dataset.root),
            "is_default": dataset.is_default,
            "form": dataset.form,
            "labels": dataset.labels,
            "summary": dataset.summary,
            "n_requested": dataset.n_requested,
            "n_used": len(dataset.samples),
            "n_bad": len(bad),
            "bad": bad,
            "sha256": dataset.sha256,
            "notes": [*dataset.notes, *calibration.notes],
        },
    }
