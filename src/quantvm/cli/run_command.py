"""``quantvm run``: accuracy and parity."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import typer

from quantvm.cli.options import with_options_of
from quantvm.errors import OutputError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.layout import MANIFEST


@with_options_of(RunConfig, json="run.json")
def run(config: RunConfig, as_json: bool) -> None:
    """Quantize, compile, and compare accuracy and raw outputs of PyTorch and TVM on real images.

    Results go to stdout and, with one row for each image, into the run folder.

    Exit codes: 0 all well, 1 a check failed, 2 wrong option or input, 3 some models errored, 4 results could not be
    written, 130 interrupted.
    """
    from quantvm.api import evaluate
    from quantvm.jobs.evaluation.console import ConsolePrinter
    from quantvm.jobs.evaluation.observer import SILENT_OBSERVER
    from quantvm.progress import progress_for_stderr
    from quantvm.report.run_folder import default_run_folder, run_json

    if config.out is None and config.resume is None:
        config = dataclasses.replace(config, out=default_run_folder())
    folder = config.resume or config.out
    printer = ConsolePrinter()
    command = shlex.join(["quantvm", *sys.argv[1:]])
    observer = SILENT_OBSERVER if as_json else printer
    try:
        result = evaluate(config, progress=progress_for_stderr(), observer=observer, command=command)
    except OutputError:
        typer.echo(_how_to_go_on(folder, config), err=True)
        raise
    except KeyboardInterrupt:  # while images were checked
        if folder is not None and (folder / MANIFEST).exists():
            typer.echo(_how_to_go_on(folder, config), err=True)
        raise
    if as_json:
        typer.echo(run_json(result.run), nl=False)
    else:
        printer.on_end(result.run)
    typer.echo(_how_to_go_on(folder, config) if result.run["interrupted"] else f"Results are in {folder}", err=True)
    raise typer.Exit(result.exit_code)


def _how_to_go_on(folder: Path | None, config: RunConfig) -> str:
    command = ["quantvm", "run", "--resume", str(folder)]
    command += [] if config.workers is None else ["--workers", str(config.workers)]
    command += [] if config.cluster is None else ["--cluster", config.cluster]
    return f"What was computed is in {folder}. To go on: {shlex.join(command)}"
