"""What an option is, and what all groups of options share."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from quantvm.errors import ConfigError
from quantvm.options.checks import Check
from quantvm.options.reading import PLAIN, Reading

Made = TypeVar("Made")


@dataclass(frozen=True)
class Option:
    """The description of an option. Its name, type and default are those of the dataclass's field.

    Attributes:
        help: its text in the command's help and in the docstring of the dataclass.
        metavar: what stands for the value in the command's help.
        flags: what the user types; empty for ``--name-of-the-field``.
        is_argument: whether it is positional on the command line, without a flag.
        reading: how the command line's text becomes the value.
        check: returns what is wrong with a value other than None.
        called: its name in messages, if not the field's name.
    """

    help: str
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    is_argument: bool = False
    reading: Reading = PLAIN
    check: Check | None = None
    called: str = ""

    def label(self, name: str) -> str:
        """Returns what the user types for the option of that name."""
        if self.is_argument:
            return "MODEL"
        return self.flags[0].split("/")[0] if self.flags else f"--{name.replace('_', '-')}"


def option(default: Any = dataclasses.MISSING, text: str = "", *, by_place: bool = False, **known: Any) -> Any:
    """Returns a dataclass field that is an option.

    Args:
        default: its default; without one it is required.
        text: the help, see `Option`.
        by_place: whether the constructor also takes it as a positional argument.
        **known: the other attributes of `Option`.
    """
    metadata = {"option": Option(text, **known)}
    return dataclasses.field(default=default, kw_only=not by_place, metadata=metadata)


def varied(group: type[Options], name: str, **changes: Any) -> Any:
    """Returns an option of a group with another default, or with other attributes, for one command."""
    (found,) = (f for f in dataclasses.fields(group) if f.name == name)
    default = changes.pop("default", found.default)
    metadata = {"option": dataclasses.replace(found.metadata["option"], **changes)}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def help_of(group: type[Options], name: str) -> str:
    """Returns the help text of an option of a group."""
    return options_of(group)[name].help


@dataclass(frozen=True)
class Options:
    """A group of options, or all of a command's.

    Attributes:
        panel: the heading of the group in a command's help; empty for none.
        panels: other headings for single options of a command, by the option's name or by the panel of its group.
    """

    panel: ClassVar[str] = ""
    panels: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        """Converts values that a caller in Python would naturally give; each group says which."""

    def problems(self) -> list[str]:
        """Returns one sentence for every option with a wrong value, in the order of the options."""
        found = []
        for name, declared in options_of(type(self)).items():
            value = getattr(self, name)
            if declared.check is not None and value is not None and (problem := declared.check(value)) is not None:
                found.append(f"{declared.called or name}: {problem}")
        return [*found, *self.wrong_combinations()]

    def wrong_combinations(self) -> Iterator[str]:
        """Yields one sentence for every combination of values that is not allowed."""
        yield from ()

    def shared(self, kind: type[Made], **others: Any) -> Made:
        """Returns options of another kind: options that both kinds have are copied from here, the others are given."""
        wanted = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
        both = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in wanted}
        return kind(**(both | others))

    def as_json(self) -> dict[str, Any]:
        """Returns the options as a JSON result holds them."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


Kind = TypeVar("Kind", bound=type[Options])


def documented(kind: Kind) -> Kind:
    """Returns the dataclass with its options listed at the end of its docstring."""
    lines = [f"    {name}: {declared.help}" for name, declared in options_of(kind).items()]
    kind.__doc__ = "\n".join([(kind.__doc__ or "").rstrip(), "", "Options:", *lines])
    return kind


def options_of(kind: type[Options]) -> dict[str, Option]:
    """Returns the options of a dataclass by name: the positional ones, those of each group, and its own."""
    fields = {f.name: f for f in dataclasses.fields(kind) if "option" in f.metadata}
    by_place = [name for name, f in fields.items() if not f.kw_only]
    of_groups = [name for group in kind.__bases__ if issubclass(group, Options) for name in options_of(group)]
    return {name: fields[name].metadata["option"] for name in dict.fromkeys([*by_place, *of_groups, *fields])}


def types_of(kind: type[Options]) -> dict[str, Any]:
    """Returns the types of the options by name."""
    return typing.get_type_hints(kind)


def panels_of(kind: type[Options]) -> dict[str, str]:
    """Returns the heading of each option in the help of a command, by name; options without one are missing."""
    found: dict[str, str] = {}
    for group in reversed(kind.__mro__):
        if issubclass(group, Options):
            panel = vars(group).get("panel", "")
            found |= {name: panel or found.get(name, "") for name in vars(group).get("__annotations__", ())}
    return {
        name: kind.panels.get(name, kind.panels.get(found.get(name, ""), found.get(name, "")))
        for name in options_of(kind)
    }


def raise_problems(problems: list[str]) -> None:
    """Raises one ConfigError that lists all the problems, if there are any."""
    if problems:
        count = f"{len(problems)} wrong option{'s' if len(problems) > 1 else ''}"
        raise ConfigError("\n".join([f"{count}:", *(f"  {problem}" for problem in problems)]))
