"""Rounds and statistics, with a clock that only moves when a call says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvm.jobs.latency.rounds import alternate, geometric_mean, summarize, time_calls


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def calls_of(clock, *durations_s):
    """Returns a call that takes these durations in turn, the last one for ever."""
    left = list(durations_s)

    def call():
        clock.now_s += left.pop(0) if len(left) > 1 else left[0]

    return call


def test_each_call_is_a_sample_in_milliseconds():
    clock = Clock()
    samples_ms = time_calls(calls_of(clock, 0.5, 0.25, 0.125), min_calls=3, min_seconds=0, clock=clock)
    assert samples_ms == [500, 250, 125]


def test_it_ends_only_after_the_minimum_of_both_calls_and_seconds():
    clock = Clock()
    assert len(time_calls(calls_of(clock, 0.25), min_calls=2, min_seconds=1, clock=clock)) == 4
    assert len(time_calls(calls_of(clock, 0.25), min_calls=9, min_seconds=1, clock=clock)) == 9


def test_rounds_alternate_and_every_other_one_runs_backwards():
    order = []

    def measure(name, seconds):
        order.append((name, seconds))
        return [1000 * seconds]

    rounds = alternate(["a", "b", "c"], measure, min_rounds=3, min_seconds=1.5)
    assert "".join(name for name, _ in order) == "abccbaabc"
    assert {seconds for _, seconds in order} == {0.5}
    assert rounds == {name: [[500.0]] * 3 for name in "abc"}


@pytest.mark.parametrize(
    ("min_rounds", "min_seconds", "expected"), [(3, 0.01, 3), (2, 4.0, 4), (7, 4.0, 7), (10, 1.0, 10)]
)
def test_rounds_end_only_after_the_minimum_of_both_rounds_and_seconds(min_rounds, min_seconds, expected):
    rounds = alternate(["a"], lambda name, seconds: [1000.0], min_rounds=min_rounds, min_seconds=min_seconds)
    assert len(rounds["a"]) == expected


@given(st.integers(1, 50), st.floats(1e-3, 100))
def test_slices_of_just_the_asked_length_need_no_extra_round(min_rounds, min_seconds):
    rounds = alternate(["a"], lambda name, seconds: [1e3 * seconds], min_rounds=min_rounds, min_seconds=min_seconds)
    assert len(rounds["a"]) == min_rounds


def test_the_slowest_engine_decides_and_all_get_equal_rounds():
    rounds = alternate(["a", "b"], lambda name, s: [1000.0 if name == "a" else 250.0], min_rounds=1, min_seconds=1)
    assert {name: len(r) for name, r in rounds.items()} == {"a": 4, "b": 4}


def test_an_engine_that_fails_drops_out_and_the_others_go_on():
    calls = []

    def measure(name, seconds):
        calls.append(name)
        return None if calls.count("b") == 2 and name == "b" else [1000.0]

    assert alternate(["a", "b"], measure, min_rounds=3, min_seconds=1) == {"a": [[1000.0]] * 3}
    assert alternate(["a"], lambda name, seconds: None, min_rounds=3, min_seconds=1) == {}
    assert alternate([], measure, min_rounds=3, min_seconds=1) == {}


def test_statistics_are_over_all_rounds():
    row = summarize([[1.0, 2.0, 3.0], [4.0, 5.0]], batch=8)
    assert (row["p50_ms"], row["min_ms"], row["n"], row["n_rounds"]) == (3.0, 1.0, 5, 2)
    assert row["p90_ms"] == pytest.approx(4.6)
    assert row["p99_ms"] == pytest.approx(4.96)
    assert row["round_p50_ms"] == [2.0, 4.5]
    assert row["images_per_s"] == pytest.approx(8000 / 3)
    assert row["spread"] == pytest.approx(2 / 3)
    assert row["spread_warning"]


def test_a_narrow_spread_warns_of_nothing_however_far_the_last_percent_lies():
    row = summarize([[10.0] * 50 + [10.5] * 48 + [99.0, 99.0]], batch=1)
    assert not row["spread_warning"]
    assert row["p99_ms"] > row["p90_ms"]


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=40))
def test_percentiles_are_ordered(samples_ms):
    row = summarize([samples_ms], batch=1)
    assert row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= max(samples_ms) * (1 + 1e-12)


def test_geometric_mean():
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.25]) == pytest.approx(1.25)
    assert geometric_mean([]) is None
    assert math.isclose(geometric_mean(np.array([1.0, 4.0])), 2.0)
