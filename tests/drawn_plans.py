"""Plans that hypothesis draws ahead of a test, so that one artifact serves many; and the shortest that still fails."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.strategies import SearchStrategy

_Plan = TypeVar("_Plan")

PARTS = range(250)
"""A long search is so many tests, which processes share."""
_IN_A_PART = 8
_SEED = int(os.environ.get("QUANTVM_SEARCH_SEED") or datetime.datetime.now(datetime.timezone.utc).date().toordinal())
"""Every day draws others; a failure names its plan."""


def searched(strategy: SearchStrategy[_Plan], part: int) -> list[_Plan]:
    """Returns the plans of one part of today's search, 2,000 in all."""
    return drawn(strategy, _IN_A_PART, _SEED * len(PARTS) + part)


def drawn(strategy: SearchStrategy[_Plan], count: int, number: int = 0) -> list[_Plan]:
    """Returns different examples, the same ones for the same number; not the simplest, which come first."""
    found: list[_Plan] = []

    @seed(number)
    @settings(
        max_examples=4 * count + 8, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(example: _Plan) -> None:
        if example not in found:
            found.append(example)

    collect()
    assert len(found) >= count
    step = len(found) / count  # examples next to each other are alike
    return [found[int((i + 1) * step) - 1] for i in range(count)]


def check_together(plans: list[Any], check: Callable[[list[Any]], None]) -> None:
    """Calls `check` with all plans at once; where that fails, finds the shortest network that fails alone."""
    try:
        check(plans)
    except UnsatisfiedAssumption:
        pytest.fail(f"the framework takes none of them: {plans}")
    except Exception as error:
        for plan in plans:
            first = _failure(check, plan)
            if first is None:
                continue
            shorter = (replace(plan, steps=plan.steps[:n], outputs=(n,)) for n in range(1, len(plan.steps)))
            failures = ((short, _failure(check, short)) for short in shorter)
            smallest, why = next((pair for pair in failures if pair[1] is not None), (plan, first))
            raise AssertionError(f"{type(why).__name__}: {why}\n{smallest}") from error
        raise


def _failure(check: Callable[[list[Any]], None], plan: Any) -> Exception | None:
    try:
        check([plan])
    except UnsatisfiedAssumption:
        return None
    except Exception as error:  # noqa: BLE001 - of any kind, foreign ones among them
        return error
    return None
