"""What `quantvm list kernels` says is what the kernels' own selection does."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from quantvm.kernels.catalogue import kernel_choices
from quantvm.kernels.conv import conv2d
from quantvm.kernels.conv.dot import DOT_PRODUCTS, PORTABLE, select_dot
from quantvm.kernels.isa import select_isa
from quantvm.tvm_compat import make_target


def choices(cpu):
    target = make_target({"mcpu": cpu, "mtriple": "x86_64-linux-gnu"})
    return target, {choice.name: choice for choice in kernel_choices(target)}


@pytest.mark.parametrize("cpu", ["x86-64", "haswell", "alderlake", "skylake-avx512", "cascadelake", "sapphirerapids"])
def test_the_chosen_candidate_is_the_selected_dot_product(cpu):
    target, found = choices(cpu)
    for name in ("conv2d", "linear"):
        assert [c.name for c in found[name].candidates] == [dot.name for dot in DOT_PRODUCTS]
        (chosen,) = [c for c in found[name].candidates if c.chosen]
        assert chosen.name == select_dot(target).name
        assert chosen.missing == ()
        assert next(c for c in found[name].candidates if not c.missing) is chosen


def test_what_is_missing_is_named():
    _, found = choices("haswell")
    missing = {c.name: c.missing for c in found["conv2d"].candidates}
    assert missing["vnni"] == ("avx512bw", "avx512vl", "avx512vnni")
    assert missing["avxvnni"] == ("avxvnni",)
    assert missing[PORTABLE.name] == ()


def test_every_kernel_is_there_once_and_says_what_it_computes():
    found = kernel_choices(make_target({"mcpu": "x86-64", "mtriple": "x86_64-linux-gnu"}))
    names = [choice.name for choice in found]
    assert names == sorted(set(names))
    assert {"conv2d", "linear", "depthwise_conv2d", "add", "table", "max_pool2d", "quantize"} <= set(names)
    assert all(choice.summary for choice in found)
    assert all(len([c for c in choice.candidates if c.chosen]) == 1 for choice in found)


def test_groups_are_those_that_the_isa_has():
    for cpu in ("haswell", "skylake-avx512", "icelake-server"):
        target, found = choices(cpu)
        groups = {group.name: group.chosen for group in found["conv2d"].groups}
        assert groups == dataclasses.asdict(select_isa(target))
        assert all(group.chosen != bool(group.missing) for group in found["depthwise_conv2d"].groups)
    assert found["max_pool2d"].groups == ()


def test_a_choice_is_recognized_by_the_type_of_a_parameter():
    assert inspect.signature(conv2d.linear).parameters["dot"].annotation == "DotProduct"
