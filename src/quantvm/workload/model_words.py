"""What a user may write for a model, here a word: a registered name, a file, or a factory, as ``pkg.mod:name``.

Reading a word imports neither torch nor tvm; `call_factory` runs the user's code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from quantvm.errors import ConfigError, ModelCodeError, UnknownNameError
from quantvm.torch_compat import quiet

Kind = Literal["registered", "file", "factory"]

_SUFFIXES = frozenset((".pt", ".pth", ".ts", ".pt2", ".onnx", ".tflite"))
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def kind_of(word: str, get_model: Callable[[str], Any] | None = None) -> Kind:
    """Returns what a word names. If there is both a file and a registered model of that name, the file is meant.

    Args:
        word: as the user wrote it.
        get_model: returns a registered model, or raises UnknownNameError; by default that of the registry.

    Raises:
        ConfigError: it names nothing; the message says what it could have been.
    """
    path = Path(word)
    if path.is_file():
        return "file"
    if path.suffix.lower() in _SUFFIXES:
        is_folder = f"'{word}' is a folder, expected a file"
        raise ConfigError(is_folder if path.is_dir() else f"there is no file '{word}'{_near(path)}")
    if _FACTORY.fullmatch(word):
        return "factory"
    from quantvm import models

    try:
        (get_model or models.get_model)(word)
    except UnknownNameError as error:
        if path.is_dir():
            raise ConfigError(
                f"'{word}' is a folder, expected a file, a factory as pkg.mod:name, or a registered model"
            ) from error
        hint = "; a factory is written as pkg.mod:name" if ":" in word else ""
        raise ConfigError(f"there is no file '{word}', and it is no registered model{hint}: {error}") from error
    return "registered"


def problem_of_word(word: str) -> str | None:
    """Returns what is wrong with a word that names no model, or None."""
    try:
        kind_of(word)
    except ConfigError as error:
        return str(error)
    return None


def is_registered(word: str) -> bool:
    """Says whether a word is a registered name, and there is no file of that name."""
    return problem_of_word(word) is None and kind_of(word) == "registered"


def _near(path: Path) -> str:
    """Returns the files of that kind in the folder where one was not found."""
    there = sorted(p.name for p in path.parent.glob(f"*{path.suffix}") if p.is_file()) if path.parent.is_dir() else []
    if not path.parent.is_dir():
        return f": there is no folder '{path.parent}'"
    return f"; there {'is' if len(there) == 1 else 'are'} {', '.join(there[:5])}" if there else ""


def call_factory(word: str) -> Any:
    """Returns what a factory makes; modules in the current folder can be named, too.

    Args:
        word: ``pkg.mod:name``. The name is called without arguments unless it is a module of PyTorch itself.

    Raises:
        ConfigError: there is no such Python module, or nothing of that name in it, or it cannot be called.
        ModelCodeError: the user's code raised; the error's cause has the stack.
    """
    module_name, _, attributes = word.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as with `python -m`; it stays there, because a factory may import modules later
        sys.path.insert(0, here)
    try:
        with quiet():
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{word}: there is no Python module '{error.name}', neither installed nor in {here}"
            ) from error
        raise ModelCodeError.of(word, "importing it", error) from error
    except Exception as error:
        raise ModelCodeError.of(word, "importing it", error) from error
    for name in attributes.split("."):
        if not hasattr(found, name):
            public = [other for other in vars(found) if not other.startswith("_")] if hasattr(found, "__dict__") else []
            raise ConfigError(f"{word}: {module_name} has no '{name}'; it has {', '.join(public[:20]) or 'nothing'}")
        found = getattr(found, name)
    if _is_module(found):
        return found
    if not callable(found):
        raise ConfigError(f"{word} is of type {type(found).__name__}, expected a function that returns the model")
    _check_needs_nothing(word, found)
    try:
        with quiet():
            return found()
    except Exception as error:
        raise ModelCodeError.of(word, "calling it", error) from error


def _check_needs_nothing(word: str, factory: Callable[..., Any]) -> None:
    """Raises ConfigError for a factory that cannot be called without arguments."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # code in C may have none
        return
    try:
        signature.bind()
    except TypeError as error:
        raise ConfigError(
            f"{word}: expected a function without arguments, got {word.split(':')[1]}{signature}"
        ) from error


def _is_module(value: Any) -> bool:
    import torch

    return isinstance(value, torch.nn.Module)
