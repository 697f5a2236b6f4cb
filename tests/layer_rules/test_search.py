"""The search names the fact that was switched, and nothing where no rule gives every element."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.layer_rules import Search, candidates, differing_facts, preset_of
from quantvm.layer_rules.family import family_of

from .conftest import ENVIRONMENT

LAYERS = ("wide", "depthwise", "head", "add", "hardswish", "avg_pool2d", "mean")


def searched(subject, index, expected, actual, reference="fbgemm", said="fbgemm"):
    search = Search(subject.operator(index), presets=(reference, said), environment=ENVIRONMENT)
    inputs = subject.inputs(index)
    search.add(inputs, expected, actual)
    while search.pending():
        search.start_verifying()
        search.verify(inputs, expected, actual)
        search.end_verifying()
    return search


@pytest.mark.parametrize("name", LAYERS)
def test_one_switched_fact_is_named(name, subject_of):
    subject = subject_of("fbgemm")
    index = subject.index(name)
    operator = subject.operator(index)
    family, base = family_of(operator.kind), preset_of(operator, "fbgemm", ENVIRONMENT)
    expected = subject.by_preset(index, "fbgemm")
    tried = 0
    for fact, values in family.options.items():
        for value in values:
            facts = {**base.facts, fact: value}
            if value == base.facts[fact] or not family.is_valid(operator, facts):
                continue
            actual = subject.evaluated(index, facts)
            if np.array_equal(actual, expected):
                continue
            tried += 1
            search = searched(subject, index, expected, actual)
            reference_rule, rule = search.closest()
            assert search.follows_said(0)
            assert not search.follows_said(1)
            assert len(differing_facts(reference_rule.facts, rule.facts)) == 1
            np.testing.assert_array_equal(subject.evaluated(index, rule.facts), actual)
            if rule.facts[fact] != value:  # another fact has the very same effect on all of these elements
                assert rule.key in {r.key for r in search.rules[1]}
    assert tried >= 2


def test_engines_are_told_apart_by_the_facts_in_which_they_differ(subject_of):
    subject = subject_of("fbgemm")
    index = subject.index("wide")
    expected, actual = subject.by_preset(index, "onednn"), subject.by_preset(index, "integer")
    search = searched(subject, index, expected, actual, "onednn", "integer")
    first, second = search.closest()
    assert search.follows_said(0)
    assert search.follows_said(1)
    operator = subject.operator(index)
    for rule, said in ((first, "onednn"), (second, "integer")):
        facts = preset_of(operator, said, ENVIRONMENT).facts
        differing = list(differing_facts(first.facts, second.facts))
        assert differing
        assert all(rule.facts[fact] == facts[fact] for fact in differing)


def test_one_element_off_is_explained_by_nothing(subject_of):
    subject = subject_of("fbgemm")
    for name in LAYERS:
        index = subject.index(name)
        actual = subject.by_preset(index, "fbgemm").copy()
        actual.reshape(-1)[actual.size // 2] ^= 3
        search = searched(subject, index, subject.by_preset(index, "fbgemm"), actual)
        assert search.follows_said(0)
        assert search.rules[1] == []
        assert search.closest() is None


def test_candidates_are_distinct_and_presets_come_first(subject_of):
    operator = subject_of("fbgemm").operator(subject_of("fbgemm").index("wide"))
    rules = list(candidates(operator, ("fbgemm", "onednn"), ENVIRONMENT))
    assert [rule.preset for rule in rules[:2]] == ["fbgemm", "onednn"]
    assert len({rule.key for rule in rules}) == len(rules)
    assert {len(rule.switched) for rule in rules} == {0, 1, 2}
