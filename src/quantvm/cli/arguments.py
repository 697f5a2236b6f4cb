"""What all commands do with their arguments, errors and results."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from quantvm.errors import (
    ConfigError,
    ModelCodeError,
    OutputError,
    QuantvmError,
    VerificationError,
    gist,
    is_output_failure,
)
from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_MODELS_ERRORED, EXIT_OUTPUT, EXIT_USAGE
from quantvm.storage.download import cache_dir
from quantvm.storage.output_files import make_folder, write_file

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@contextmanager
def errors_to_exit_codes(flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """Prints an error that the user can act on, and ends the process with its exit code.

    A stack is printed only for errors in the user's own code, and for errors that no stage turned into one of ours. If
    a stage turned an unexpected error into one of ours, its stack is written to a file.

    Args:
        flags: what the user types for each option name with which a message about a wrong option may begin.
    """
    try:
        yield
    except QuantvmError as error:
        if isinstance(error, ModelCodeError):
            typer.echo(error.stack(), err=True, nl=False)
        kept = _kept_stack(error) if error.is_unexpected else None
        where = f", which is in {kept}" if kept else ""
        typer.echo(f"quantvm: {_with_flags(str(error), flags or {})}{where}", err=True)
        raise typer.Exit(_exit_code(error)) from error
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except MemoryError as error:
        typer.echo("quantvm: the memory does not suffice for this model", err=True)
        raise typer.Exit(EXIT_MODELS_ERRORED) from error
    except Exception as error:
        if is_output_failure(error):
            typer.echo(f"quantvm: {gist(error)}", err=True)
            raise typer.Exit(EXIT_OUTPUT) from error
        traceback.print_exc()
        typer.echo(f"quantvm: {gist(error)}. Please report this with the command and the stack above", err=True)
        raise typer.Exit(EXIT_MODELS_ERRORED) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("quantvm: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def _exit_code(error: QuantvmError) -> int:
    if isinstance(error, VerificationError):
        return EXIT_CHECK_FAILED
    is_found_before_work = isinstance(error, ConfigError)
    return EXIT_OUTPUT if is_output_failure(error) and not is_found_before_work else EXIT_USAGE


def _kept_stack(error: BaseException) -> Path | None:
    """Writes the stack of an error to a file in the cache folder; returns the file, or None if writing fails."""
    path = cache_dir() / "last_error.txt"
    try:
        make_folder(path.parent)
        write_file(path, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
    except OutputError:
        return None
    return path


def _with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Returns a message about wrong options with the names that begin its lines replaced by what the user types."""
    if not re.match(r"\d+ wrong options?:\n", message):
        return message
    return re.sub(r"(?m)^  (\w+): ", lambda match: f"  {flags.get(match[1], match[1])}: ", message)


def print_result(value: object, lines: Iterable[str], as_json: bool) -> None:
    """Prints the value as JSON, or the lines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
