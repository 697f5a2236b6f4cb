"""``quantvm report``: the results of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import AsJson, errors_to_exit_codes


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `quantvm run` was given as --out.")],
    as_json: AsJson = False,
) -> None:
    """Show the results in a run folder, also while the run is under way or after it was broken off.

    Exit codes: 0 shown, 2 no run is there, 4 it could not be printed.
    """
    with errors_to_exit_codes():
        from quantvm.jobs.evaluation.console import ConsolePrinter
        from quantvm.jobs.evaluation.reporting import read_run
        from quantvm.report.run_folder import run_json

        run = read_run(folder).run
        if as_json:
            typer.echo(run_json(run), nl=False)
            return
        printer = ConsolePrinter()
        printer.on_start(run)
        printer.on_end(run)
