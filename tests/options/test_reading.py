"""What is written on the command line, as the value of an option."""

from __future__ import annotations

import pytest

from quantvm.options import reading


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (reading.PLAIN, 3, 3),
        (reading.WORDS, ["a,b", "c"], ("a,b", "c")),
        (reading.NAMES, ["a, b", "c", " , "], ("a", "b", "c")),
        (reading.LISTED_NAMES, "a,b", ("a", "b")),
        (reading.NUMBERS, ["1,8", "2"], (1, 8, 2)),
        (reading.REALS, "0.5,-1e-3", (0.5, -0.001)),
        (reading.SHAPE, "1, 3,224", (1, 3, 224)),
        (reading.SHAPES, ["1,3", "7"], ((1, 3), (7,))),
    ],
)
def test_values(kind, written, value):
    assert kind.read(written) == value


@pytest.mark.parametrize(
    ("kind", "written", "named"),
    [
        (reading.NUMBERS, ["1,x,-2"], "x, -2"),
        (reading.NUMBERS, ["1.5"], "1.5"),
        (reading.REALS, "1,,2", "1,,2"),
        (reading.SHAPE, "1,-3", "1,-3"),
        (reading.SHAPES, ["1,3", ""], "''"),
    ],
)
def test_what_is_no_number_is_named(kind, written, named):
    with pytest.raises(ValueError, match=named):
        kind.read(written)


def test_defaults_are_shown_as_they_are_written():
    assert [reading.REALS.shown((0.5, 0.25)), reading.LISTED_NAMES.shown(("a", "b")), reading.PLAIN.shown(4)] == [
        "0.5,0.25", "a,b", 4,
    ]  # fmt: skip
    assert reading.LISTED_NAMES.shown(()) is None
    assert reading.NAMES.shown(("a",)) is None
