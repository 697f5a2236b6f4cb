"""``quantvm list``, ``quantvm fetch`` and ``quantvm doctor``: what there is, and how to get the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from quantvm.cli.arguments import AsJson, errors_to_exit_codes, print_result
from quantvm.options import reading
from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_USAGE

list_app = typer.Typer(help="What there is: models, data, forms, ops, targets, kernels.", no_args_is_help=True)
fetch_app = typer.Typer(help="Download weights or data sets, to work without a network later.", no_args_is_help=True)


@list_app.command("models")
def list_models(as_json: AsJson = False) -> None:
    """List the models, and whether their weights are on this machine."""
    with errors_to_exit_codes():
        from quantvm import inventory

        rows = inventory.list_models()
        print_result(rows, inventory.model_lines(rows), as_json)


@list_app.command("data")
def list_data(as_json: AsJson = False) -> None:
    """List the named data sets, and whether they are on this machine."""
    with errors_to_exit_codes():
        from quantvm import inventory

        rows = inventory.list_data()
        print_result(rows, inventory.data_lines(rows), as_json)


@list_app.command("forms")
def list_forms(as_json: AsJson = False) -> None:
    """List the forms in which ImageNet is read from folders and archives."""
    with errors_to_exit_codes():
        from quantvm import inventory

        rows = inventory.list_forms()
        print_result(rows, inventory.form_lines(rows), as_json)


@list_app.command("ops")
def list_ops(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A page with what each becomes.")] = False,
) -> None:
    """List the PyTorch operators that can be imported."""
    with errors_to_exit_codes():
        if markdown:
            from quantvm.supported_ops import supported_ops_markdown

            typer.echo(supported_ops_markdown(), nl=False)
            return
        from quantvm import inventory

        names = inventory.list_ops()
        print_result(names, names, as_json)


@list_app.command("targets")
def list_targets(as_json: AsJson = False) -> None:
    """List what can be compiled for."""
    with errors_to_exit_codes():
        from quantvm import inventory

        rows = inventory.list_targets()
        print_result(rows, inventory.target_lines(rows), as_json)


@list_app.command("kernels")
def list_kernels(
    target: Annotated[str, typer.Option(metavar="TARGET", help="See: quantvm list targets.")] = "native",
    as_json: AsJson = False,
) -> None:
    """List the int8 kernels: which implementation a target gets, and what it lacks for the others."""
    with errors_to_exit_codes():
        from quantvm import inventory

        listing = inventory.list_kernels(target)
        print_result(listing, inventory.kernel_lines(listing), as_json)


@fetch_app.command("weights")
def fetch_weights(
    model: Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="Without it: every model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Get the models' weights onto this machine; what is there already is only checked."""
    with errors_to_exit_codes():
        from quantvm.inventory import fetch_all_weights, fetch_lines
        from quantvm.progress import progress_for_stderr

        rows = fetch_all_weights(reading.names(model or ()), progress_for_stderr())
        print_result(rows, fetch_lines(rows), as_json)
        if any(row["problem"] for row in rows):
            raise typer.Exit(EXIT_USAGE)


@fetch_app.command("data")
def fetch_data(
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="Named data sets, as --data of run takes them.")],
    as_json: AsJson = False,
) -> None:
    """Get named data sets onto this machine."""
    with errors_to_exit_codes():
        from quantvm.data import fetch_data as fetch
        from quantvm.progress import progress_for_stderr

        folders = {each: str(fetch(each, progress_for_stderr())) for each in name}
        print_result(folders, [f"{each}: {folder}" for each, folder in folders.items()], as_json)


def doctor(as_json: AsJson = False) -> None:
    """Show versions, processor, threads, and what can run without a network; exit 1 if something is in the way."""
    with errors_to_exit_codes():
        from quantvm.jobs.doctor import doctor_lines, examine

        report = examine()
        print_result(report, doctor_lines(report), as_json)
        if report["problems"]:
            raise typer.Exit(EXIT_CHECK_FAILED)
