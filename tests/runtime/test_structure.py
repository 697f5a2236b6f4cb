"""How inputs and outputs are nested: taken apart, put together, named, and read from a file."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from quantvm.structure import checked, in_order, is_flat, output_names, put_together, renesting, take_apart

Pair = namedtuple("Pair", "first second")


@dataclass
class ModelOutput:
    logits: Any
    hidden: Any = None


A, B, C = (np.full(2, i) for i in range(3))


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def through_json(value: Any) -> tuple[Any, list[Any]]:
    structure, tensors = take_apart(value, is_array)
    return checked(json.loads(json.dumps(structure)), len(tensors)), tensors


def test_every_kind_of_nesting_comes_back():
    value = {"a": (A, [B, None, 3, "x", True]), 0: Pair(C, {"deep": A}), "e": (), "f": 0.5}
    structure, tensors = through_json(value)
    back = put_together(structure, tensors)
    assert list(back) == ["a", 0, "e", "f"]
    assert back["a"][0] is A
    assert back["a"][1][0] is B
    assert back["a"][1][1:] == [None, 3, "x", True]
    assert back[0].first is C
    assert back[0].second["deep"] is A
    assert type(back[0]).__name__ == "Pair"
    assert back["e"] == ()
    assert back["f"] == 0.5


def test_data_classes_and_mappings_come_back_as_dicts():
    for value in (ModelOutput(A), OrderedDict(logits=A, hidden=None)):
        structure, tensors = through_json(value)
        assert put_together(structure, tensors) == {"logits": A, "hidden": None}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (A, ["output"]), ((A, B), ["output_0", "output_1"]), ([A, (B, C)], ["output_0", "output_1", "output_2"]),
        ({"out": A, "aux": B}, ["out", "aux"]), ({"a": [A, B], "b": {"c": C}}, ["a.0", "a.1", "b.c"]),
        (Pair(A, B), ["first", "second"]),
    ],
)  # fmt: skip
def test_names_of_outputs(value, names):
    structure, _ = take_apart(value, is_array)
    assert output_names(structure) == names
    assert is_flat(structure) == (names[0].startswith("output") and not isinstance(value, list))


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"\['a'\]\[1\] is a set, expected a tensor"):
        take_apart({"a": [A, {1}]}, is_array)


@pytest.mark.parametrize(
    "structure",
    [
        None, 3, {}, {"tensor": 1}, {"tensor": True}, {"tensor": -1}, {"tuple": {}}, {"dict": [["a"]]}, {"other": []},
        {"constant": []}, {"namedtuple": ["class", [["__class__", {"tensor": 0}]]]}, {"list": []},
        {"namedtuple": ["P", [["a b", {"tensor": 0}]]]}, {"tuple": [{"tensor": 0}], "list": []},
        {"namedtuple": ["P", [["def", {"tensor": 0}]]]},
    ],
)  # fmt: skip
def test_a_damaged_structure_is_refused(structure):
    with pytest.raises(ValueError, match="structure"):
        checked(structure, 1)


def test_inputs_in_order():
    names = ["x", "state.0", "state.1", "mask"]
    expected = [A, B, C, A]
    for args, kwargs in [
        ((A, B, C, A), {}), ((A, (B, C), A), {}), ((A, (B, C)), {"mask": A}), ((A,), {"mask": A, "state": [B, C]}),
        (({"x": A, "state": (B, C), "mask": A},), {}), ((A, None, (B, C)), {"mask": A}),
    ]:  # fmt: skip
        got = in_order(names, args, kwargs)
        assert [a is b for a, b in zip(got, expected, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((A,), {}, "takes 2 inputs, got 1"), ((A, B, C), {}, "takes 2 inputs, got 3"),
        ((A,), {"z": B}, "unknown input 'z'"), ((A,), {"x": B, "y": C}, "input x is given twice"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        in_order(["x", "y"], args, kwargs)


def test_examples_are_nested_anew_with_other_tensors():
    flat, nest = renesting([{"a": B, "c": [A, None, 3]}, True, A], ["c", "a", "x"])
    assert [x is y for x, y in zip(flat, (A, B, A), strict=True)] == [True] * 3
    assert nest(["c", "a", "x"]) == [{"a": "a", "c": ["c", None, 3]}, True, "x"]
    assert renesting(A, ["x"])[1](["y"]) == "y"
    assert renesting({"y": A, "x": B}, ["x", "y"])[1](["x", "y"]) == {"y": "y", "x": "x"}
    assert renesting([[1.0, 2.0]], ["x"])[0] == [[1.0, 2.0]]


def test_a_list_of_numbers_is_an_array():
    assert in_order(["x"], ([[1.0, 2.0]],), {}) == [[[1.0, 2.0]]]
