"""Tells typer the options of a command: they are those of the job's configuration."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from quantvm.cli.arguments import errors_to_exit_codes
from quantvm.options.option import Option, Options, options_of, panels_of, types_of
from quantvm.tvm_start import raise_first_error

Config = TypeVar("Config", bound=Options)


def with_options_of(
    kind: type[Config], *, json: str = "JSON"
) -> Callable[[Callable[[Config, bool], None]], Callable[..., None]]:
    """Returns a decorator for functions that take a configuration, and whether to print JSON.

    The decorated command has one option for each option of the configuration, and ``--json``. Errors of quantvm,
    including those about the options, end the process with their exit codes.

    Args:
        kind: the configuration's class.
        json: what ``--json`` prints.
    """

    def decorator(function: Callable[[Config, bool], None]) -> Callable[..., None]:
        options, types, panels = options_of(kind), types_of(kind), panels_of(kind)
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        labels = {name: declared.label(name) for name, declared in options.items()}

        @functools.wraps(function)
        def command(as_json: bool, **given: Any) -> None:
            with errors_to_exit_codes(_with_flag_names(labels)):
                raise_first_error()  # all commands with a configuration import TVM
                read = {name: _read(options[name], labels[name], value) for name, value in given.items()}
                function(kind(**{name: value for name, value in read.items() if value is not None}), as_json)

        parameters = [
            _parameter(name, declared, types[name], defaults[name], panels[name]) for name, declared in options.items()
        ]
        as_json = Annotated[bool, typer.Option("--json", help=f"Print {json} instead of text.")]
        parameters.append(
            inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, annotation=as_json, default=False)
        )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorator


def _read(declared: Option, label: str, given: Any) -> Any:
    """Returns the value of an option as it was written; None if it was not given."""
    if given is None:
        return None
    try:
        return declared.reading.read(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=label) from error


def _parameter(name: str, declared: Option, of_type: Any, default: Any, panel: str) -> inspect.Parameter:
    known: dict[str, Any] = {"metavar": declared.metavar, "help": declared.help}
    if panel:
        known["rich_help_panel"] = panel
    info = typer.Argument(**known) if declared.is_argument else typer.Option(*_flags(name, declared), **known)
    shown = inspect.Parameter.empty if default is dataclasses.MISSING else declared.reading.shown(default)
    annotation = Annotated[declared.reading.typed or _parsed_as(of_type), info]  # type: ignore[valid-type]  # made as the program runs
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=shown)


def _flags(name: str, declared: Option) -> tuple[str, ...]:
    return declared.flags or (declared.label(name),)


def _parsed_as(of_type: Any) -> Any:
    """Returns the type that the parser checks; the configuration checks words, to report all problems at once."""
    if get_origin(of_type) is Literal:
        return str
    optional = type(None) in get_args(of_type)
    plain: Any
    (plain,) = (part for part in get_args(of_type) or (of_type,) if part is not type(None))
    assert plain in (bool, int, float, str, Path), f"no reading for {of_type}"
    return plain | None if optional else plain


def _with_flag_names(labels: dict[str, str]) -> dict[str, str]:
    """Returns what the user types for each option name with which a message may begin."""
    flags = {label.removeprefix("--").replace("-", "_"): label for label in labels.values() if label.startswith("--")}
    singular = {name.removesuffix("s"): label for name, label in labels.items()}
    return singular | flags | labels
