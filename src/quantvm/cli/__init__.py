"""The command line: arguments only. Every command calls the function that a user of the library would call.

Results go to stdout, progress and messages to stderr. Exit codes: 0 all well, 1 a check failed, 2 wrong usage or input,
3 finished but some models errored, or an error of quantvm itself, 4 results or temporary files could not be written,
130 interrupted (143 by SIGTERM) with what was done until then saved.
"""

from __future__ import annotations

from typing import Annotated

import typer

from quantvm.cli.bench_command import bench
from quantvm.cli.cache_commands import cache_app
from quantvm.cli.compile_command import compile  # noqa: A004 - the command's name
from quantvm.cli.diff_command import diff
from quantvm.cli.inventory_commands import doctor, fetch_app, list_app
from quantvm.cli.report_command import report
from quantvm.cli.run_command import run
from quantvm.cli.tune_command import tune

app = typer.Typer(
    name="quantvm",
    help=(
        "Quantized PyTorch models on Apache TVM: the same bits, real int8 code, measured on real images.\n\n"
        "`quantvm run` is the main job: it quantizes models in PyTorch, compiles them with TVM, runs both on labelled "
        "images, and prints accuracy and raw-output parity."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(report)
app.command()(bench)
app.command()(compile)
app.command()(diff)
app.command()(tune)
app.add_typer(list_app, name="list")
app.add_typer(fetch_app, name="fetch")
app.add_typer(cache_app, name="cache")
app.command()(doctor)


def main() -> None:
    """Runs the command line of this process."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from quantvm import __version__

        typer.echo(f"quantvm {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
