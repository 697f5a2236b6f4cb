"""Which implementation of each kernel a target gets, and why it gets no other.

Nothing is registered: a kernel is any public function of this package that returns a `Kernel`, and its possible
implementations follow from the types of its parameters.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module

import tvm

from quantvm.kernels.conv.dot import missing_features, select_dot

from .isa import missing_for_groups


@dataclass(frozen=True)
class Candidate:
    """One implementation.

    Attributes:
        name: as in the kernel's name; `any` if the only implementation runs on every CPU that LLVM knows.
        missing: features that it requires and the target lacks, sorted.
        chosen: whether the target gets it; the first without missing features is chosen.
    """

    name: str
    missing: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True)
class KernelChoice:
    """One kernel on one target.

    Attributes:
        name: the function that makes it.
        summary: what it computes.
        applies_to: the cases to which the choice applies, and what other cases use; empty if there is no choice.
        candidates: implementations in the order of preference.
        groups: groups of special instructions that its code can use, see `isa.Isa`; chosen: the target has them.
    """

    name: str
    summary: str
    applies_to: str
    candidates: tuple[Candidate, ...]
    groups: tuple[Candidate, ...]


def kernel_choices(target: tvm.target.Target) -> tuple[KernelChoice, ...]:
    """Returns the choice for `target` of each kernel, sorted by name."""
    found = []
    for function in _kernel_functions():
        types = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        applies_to, choose = next((_SELECTIONS[name] for name in types if name in _SELECTIONS), ("", _only_one))
        summary = (inspect.getdoc(function) or "").partition("\n")[0].removeprefix("Returns ").rstrip(".")
        found.append(KernelChoice(function.__name__, summary, applies_to, choose(target), _groups(types, target)))
    return tuple(sorted(found, key=lambda choice: choice.name))


def _kernel_functions() -> Iterator[Callable[..., object]]:
    package = import_module(__package__)
    for module_info in pkgutil.walk_packages(package.__path__, f"{__package__}."):
        module = import_module(module_info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and function.__annotations__.get("return") == "Kernel":
                yield function


def _dot_products(target: tvm.target.Target) -> tuple[Candidate, ...]:
    chosen = select_dot(target)
    return tuple(
        Candidate(dot.name, tuple(sorted(missing)), dot is chosen) for dot, missing in missing_features(target)
    )


def _groups(types: Collection[object], target: tvm.target.Target) -> tuple[Candidate, ...]:
    if "Isa" not in types:
        return ()
    return tuple(
        Candidate(group, tuple(sorted(missing)), not missing) for group, missing in missing_for_groups(target).items()
    )


def _only_one(target: tvm.target.Target) -> tuple[Candidate, ...]:
    return (Candidate("any", (), True),)


_SELECTIONS: dict[str, tuple[str, Callable[[tvm.target.Target], tuple[Candidate, ...]]]] = {
    "DotProduct": (
        "uint8 inputs and weights without zero points; others take portable; without VNNI, weights may be split, and "
        "bits of PyTorch take pairs",
        _dot_products,
    ),
}
"""Type of a kernel's parameter -> to which cases the choice applies, and the implementations to choose from."""
