"""Who is told what an evaluation finds, while it finds it."""

from __future__ import annotations

from typing import Protocol

from quantvm.jobs.evaluation.schema import ModelRow, RunRow


class Observer(Protocol):
    """Is called with what an evaluation finds, as soon as it finds it."""

    def on_start(self, run: RunRow) -> None:
        """Called once, before the first model: `run` is complete except for its models."""

    def on_model(self, model: ModelRow) -> None:
        """Called for each model when its row is final."""


class _SilentObserver:
    def on_start(self, run: RunRow) -> None:
        pass

    def on_model(self, model: ModelRow) -> None:
        pass


SILENT_OBSERVER: Observer = _SilentObserver()
