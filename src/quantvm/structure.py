"""How a program nests what it takes and returns: tuples, lists, dicts and named tuples of tensors.

A structure is JSON: `{"tensor": i}` is the i-th tensor, `{"constant": value}` is None, a number or a string, and
`{"tuple": [...]}`, `{"list": [...]}`, `{"dict": [[key, ...], ...]}` and `{"namedtuple": [name, [[field, ...], ...]]}`
hold structures. Data classes and other mappings, as the outputs of Hugging Face's models, come back as dicts.
"""

from __future__ import annotations

import collections
import dataclasses
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Structure = Any
_CONSTANTS = (bool, int, float, str, type(None))
MAX_DEPTH = 32
"""The deepest nesting that is read from a file."""


def take_apart(value: Any, is_tensor: Callable[[Any], bool]) -> tuple[Structure, list[Any]]:
    """Returns the structure of a value and its tensors in order.

    Raises:
        TypeError: it contains something other than tensors, containers, numbers, strings and None; says what.
    """
    tensors: list[Any] = []

    def walk(item: Any, path: str) -> Structure:
        if is_tensor(item):
            tensors.append(item)
            return {"tensor": len(tensors) - 1}
        if isinstance(item, _CONSTANTS):
            return {"constant": item}
        if isinstance(item, Mapping) or (dataclasses.is_dataclass(item) and not isinstance(item, type)):
            pairs = item.items() if isinstance(item, Mapping) else vars(item).items()
            if not all(isinstance(key, (str, int)) for key, _ in pairs):
                raise TypeError(f"{path or 'it'} is a dict whose keys are neither strings nor integers")
            return {"dict": [[key, walk(inner, f"{path}[{key!r}]")] for key, inner in pairs]}
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            fields = zip(item._fields, item, strict=True)
            return {"namedtuple": [type(item).__name__, [[f, walk(inner, f"{path}.{f}")] for f, inner in fields]]}
        if isinstance(item, (list, tuple)):
            kind = "list" if isinstance(item, list) else "tuple"
            return {kind: [walk(inner, f"{path}[{index}]") for index, inner in enumerate(item)]}
        raise TypeError(f"{path or 'it'} is a {type(item).__name__}, expected a tensor")

    return walk(value, ""), tensors


def put_together(structure: Structure, tensors: Sequence[Any]) -> Any:
    """Returns the value of this structure with these tensors."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "constant":
        return content
    if kind == "dict":
        return {key: put_together(inner, tensors) for key, inner in content}
    if kind == "namedtuple":
        name, fields = content
        made = collections.namedtuple(name, [field for field, _ in fields])  # type: ignore[misc]
        return made(*(put_together(inner, tensors) for _, inner in fields))
    items = [put_together(inner, tensors) for inner in content]
    return items if kind == "list" else tuple(items)


def paths(structure: Structure) -> Iterator[tuple[int, tuple[str | int, ...]]]:
    """Yields the number of each tensor, and the keys, fields and indices that lead to it."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        yield content, ()
    elif kind in ("tuple", "list", "dict", "namedtuple"):
        pairs = content if kind == "dict" else content[1] if kind == "namedtuple" else enumerate(content)
        for key, inner in pairs:
            for number, rest in paths(inner):
                yield number, (key, *rest)


def in_order(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns the tensors of a call in the order of their names.

    Args:
        names: of all inputs; nested ones have a key of their own, or a path with dots.
        args: tensors and containers of them, in the order of the inputs; those in dicts go by name. None is skipped.
        kwargs: tensors and containers of them, by name.

    Raises:
        ValueError: a name is unknown or given twice, or the number of tensors is wrong; says which.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []

    def place(name: str, value: Any) -> None:
        if name in found:
            problems.append(f"input {name} is given twice")
        found[name] = value

    def take(value: Any, name: str | None) -> None:
        if value is None:
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                take_named(f"{name}.{key}" if f"{name}.{key}" in names else str(key), inner)
        elif _is_container(value):
            for index, inner in enumerate(value):
                take(inner, f"{name}.{index}" if f"{name}.{index}" in names else name)
        elif name is not None and name in names:
            place(name, value)
        else:
            free = next((known for known in names if known not in found), None)
            place(free or f"number {len(found)}", value)

    def take_named(name: str, value: Any) -> None:
        is_nested = isinstance(value, Mapping) or _is_container(value)
        if name not in names and not is_nested and value is not None:
            problems.append(f"unknown input {name!r}")
        else:
            take(value, name)

    for value in args:
        take(value, None)
    for name, value in kwargs.items():
        take_named(name, value)
    if not problems and set(found) != set(names):
        problems.append(f"the model takes {len(names)} inputs, got {len(found)}")
    if problems:
        raise ValueError(f"{'; '.join(problems)} (inputs: {', '.join(names)})" if len(names) > 1 else problems[0])
    return [found[name] for name in names]


def renesting(example_inputs: Any, names: Sequence[str]) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Returns the tensors of example inputs in the order of their names, and a function that nests others alike.

    Raises:
        ValueError: their number is wrong, or a name is unknown.
    """
    is_sequence = isinstance(example_inputs, (list, tuple))  # of arguments
    structure, leaves = take_apart(
        example_inputs, lambda value: _is_array(value) and not (is_sequence and value is example_inputs)
    )
    marked = put_together(_without_constants(structure), [_Marker(number) for number in range(len(leaves))])
    arguments = marked if is_sequence else [marked]
    order = [marker.number for marker in in_order(names, arguments, {})]

    def nest(tensors: Sequence[Any]) -> Any:
        return put_together(structure, [tensors[order.index(number)] for number in range(len(leaves))])

    return [leaves[number] for number in order], nest


@dataclasses.dataclass(frozen=True)
class _Marker:
    """Stands for a tensor, and knows only its number."""

    number: int
    shape: tuple[int, ...] = ()


def _is_array(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and not _is_container(value) and all(map(_is_number, value))
    return isinstance(value, float) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def _is_number(value: Any) -> bool:
    return _is_array(value) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _without_constants(structure: Structure) -> Structure:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return structure
    if kind == "constant":
        return {"constant": None}
    if kind in ("dict", "namedtuple"):
        pairs = content if kind == "dict" else content[1]
        return {"dict": [[key, _without_constants(inner)] for key, inner in pairs]}
    return {kind: [_without_constants(inner) for inner in content]}


def _is_container(value: Any) -> bool:
    """Whether a list holds tensors or containers; a list of numbers is itself an array."""
    return isinstance(value, (list, tuple)) and any(
        hasattr(item, "shape") or isinstance(item, Mapping) or _is_container(item) for item in value
    )


def is_flat(structure: Structure) -> bool:
    """Returns whether a structure is one tensor, or a tuple of several tensors, and so needs no description."""
    ((kind, content),) = structure.items()
    return kind == "tensor" or (kind == "tuple" and len(content) > 1 and all("tensor" in inner for inner in content))


def output_names(structure: Structure) -> list[str]:
    """Returns a name for each tensor of an output: its keys and fields, joined by dots; numbered where it has none."""
    found = dict(paths(structure))
    generic = "output" if len(found) == 1 else "output_{}"
    return [
        generic.format(number) if all(isinstance(key, int) for key in path) and not _has_keys(structure)
        else ".".join(str(key) for key in path)
        for number, path in sorted(found.items())
    ]  # fmt: skip


def _has_keys(structure: Structure) -> bool:
    ((kind, content),) = structure.items()
    return kind in ("dict", "namedtuple") or (kind in ("tuple", "list") and any(map(_has_keys, content)))


def checked(structure: Any, count: int) -> Structure:
    """Returns a structure that was read from a file.

    Raises:
        ValueError: it is no structure, or does not hold exactly `count` tensors, each at least once.
    """
    seen: set[int] = set()

    def walk(item: Any, depth: int) -> None:
        if depth > MAX_DEPTH or not isinstance(item, dict) or len(item) != 1:
            raise ValueError("structure makes no sense")
        ((kind, content),) = item.items()
        if kind == "tensor" and type(content) is int and 0 <= content < count:
            seen.add(content)
        elif kind in ("tuple", "list") and isinstance(content, list):
            for inner in content:
                walk(inner, depth + 1)
        elif kind == "dict" and _are_pairs(content, (str, int)):
            for _, inner in content:
                walk(inner, depth + 1)
        elif kind == "namedtuple" and _is_named(content):
            for _, inner in content[1]:
                walk(inner, depth + 1)
        elif kind != "constant" or not isinstance(content, _CONSTANTS):
            raise ValueError(f"structure holds {str(kind)[:20]!r}, which makes no sense")

    walk(structure, 0)
    if len(seen) != count:
        raise ValueError(f"structure has {len(seen)} tensors, expected {count}")
    return structure


def _are_pairs(content: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(content, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], kinds) for pair in content
    )


def _is_named(content: Any) -> bool:
    if not isinstance(content, list) or len(content) != 2 or not _are_pairs(content[1], (str,)):
        return False
    names = [content[0], *(field for field, _ in content[1])]
    fields = names[1:]
    return len(set(fields)) == len(fields) and all(
        isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and name[0] != "_"
        for name in names
    )
