"""What all commands do with their arguments, errors and results."""

from __future__ import annotations

import inspect
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.models import ArgumentInfo

from quantvm.errors import (
    ConfigError,
    ModelCodeError,
    OutputError,
    QuantvmError,
    VerificationError,
    gist,
    is_output_failure,
)
from quantvm.report.schema import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MODELS_ERRORED,
    EXIT_OUTPUT,
    EXIT_USAGE,
)
from quantvm.storage.download import cache_dir
from quantvm.storage.output_files import make_folder, write_file

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

QUANTIZATION = "Quantization and compilation"
"""Heads the options of that kind in the help of every command that has them."""

MODEL_HELP = (
    "A quantized model as a file (.pt of TorchScript, .pt2, .onnx, .tflite), a factory pkg.mod:name that returns a "
    "model, or a name of: quantvm list models."
)

FLOW_HELP = "How PyTorch quantizes. Without it: eager, or fx where a model cannot be quantized by that."


@contextmanager
def errors_to_exit_codes(command: Callable[..., None] | None = None) -> Iterator[None]:
    """Prints an error that the user can act on, and ends the process with its exit code.

    A stack is printed only of the user's own code, and of errors that no stage turned into one of ours; that of an
    error which a stage did not expect is kept in a file. Wrong options are called as the command calls them.
    """
    try:
        yield
    except QuantvmError as error:
        if isinstance(error, ModelCodeError):
            typer.echo(error.stack(), err=True, nl=False)
        kept = _kept_stack(error) if error.is_unexpected else None
        where = f", which is in {kept}" if kept else ""
        typer.echo(f"quantvm: {_with_option_names(str(error), command)}{where}", err=True)
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
    """Writes the stack of an error into the cache folder; returns the file, or None where none can be written."""
    path = cache_dir() / "last_error.txt"
    try:
        make_folder(path.parent)
        write_file(path, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
    except OutputError:
        return None
    return path


def _with_option_names(message: str, command: Callable[..., None] | None) -> str:
    """Returns the message with the command's options for the fields of the configuration that begin its lines."""
    if command is None or not re.match(r"\d+ wrong options?:\n", message):
        return message
    names = _option_names(command)

    def option(match: re.Match[str]) -> str:
        name = match[1]
        return f"  {names.get(name) or names.get(name.removesuffix('s')) or name}: "  # a repeated option is a plural

    return re.sub(r"(?m)^  (\w+): ", option, message)


def _option_names(command: Callable[..., None]) -> dict[str, str]:
    """Returns what the user types for each of a command's parameters."""
    names = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        (info,) = parameter.annotation.__metadata__
        # under Annotated, typer holds the first of the names as the default
        written = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
        if isinstance(info, ArgumentInfo):
            names[name] = name.upper()
        else:
            names[name] = written[0] if written else f"--{name.replace('_', '-')}"
    return names


def names_of(given: list[str] | None) -> tuple[str, ...]:
    """Returns the names of a repeated option, each of which may hold several separated by commas."""
    return tuple(name.strip() for names in given or () for name in names.split(",") if name.strip())


def numbers_of(given: list[str] | None, option: str) -> tuple[int, ...]:
    """Returns the whole numbers of a repeated option, each of which may hold several separated by commas."""
    wrong = [name for name in names_of(given) if not name.isdecimal()]
    if wrong:
        raise typer.BadParameter(f"got '{', '.join(wrong)}', expected whole numbers", param_hint=option)
    return tuple(int(name) for name in names_of(given))


def reals_of(text: str, option: str) -> tuple[float, ...]:
    """Returns the numbers of an option, separated by commas, as 0.5,0.5,0.5."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"got '{text}', expected numbers as 0.5,0.5,0.5", param_hint=option) from error


def shape_of(text: str) -> tuple[int, ...]:
    """Returns the sizes of one --input-shape, as 1,3,224,224."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"got '{text}', expected sizes as 1,3,224,224", param_hint="--input-shape")
    return tuple(int(part) for part in parts)


def print_result(value: object, lines: Iterable[str], as_json: bool) -> None:
    """Prints the value as JSON, or the lines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
