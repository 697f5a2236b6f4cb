"""Results on a terminal or into a pipe, model by model; colours only on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from quantvm.jobs.evaluation.schema import ModelRow, RunRow
from quantvm.jobs.evaluation.text import model_lines, notices, summary_lines

_BOLD, _RED, _GREEN, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_COLOURS = {"passed": _GREEN, "failed": _RED, "error": _RED, "unsupported": _RED}


class ConsolePrinter:
    """Prints what an evaluation finds as soon as it is known."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colour = self._stream.isatty() and "NO_COLOR" not in os.environ

    def on_start(self, run: RunRow) -> None:
        """Prints the notices, which come before any number."""
        found = notices(run)
        for notice in found:
            self._line(notice, _BOLD + _YELLOW)
        if found:
            self._line("")

    def on_model(self, model: ModelRow) -> None:
        """Prints a model's lines; why models were skipped stands at the end, under the tables."""
        if model["status"] == "skipped":
            return
        for line in model_lines(model):
            if line.startswith("Status:"):
                self._line(line, _COLOURS.get(model["status"], _YELLOW))
            else:
                self._line(line, _BOLD if line.startswith("Model name:") else "")
        self._line("")

    def on_end(self, run: RunRow) -> None:
        """Prints the tables and the conditions."""
        if run["interrupted"]:
            self._line("INTERRUPTED: this is a part of the run.", _BOLD + _YELLOW)
        for line in summary_lines(run):
            self._line(line)

    def _line(self, text: str, colour: str = "") -> None:
        print(f"{colour}{text}{_PLAIN}" if self._colour and colour else text, file=self._stream, flush=True)
