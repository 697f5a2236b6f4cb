"""Reads of memory that was written in place through another name."""

from __future__ import annotations

import pytest
import torch

from quantvm.frontend.torchscript.aliases import stale_reads


def reads(function) -> list[tuple[str, str]]:
    """Returns (write, read) of every stale read in a traced function, by their operators."""
    graph = torch.jit.trace(function, torch.ones(2, 4, 3), check_trace=False).graph
    torch._C._jit_pass_dce(graph)
    return [(write.kind(), read.kind()) for write, read in stale_reads(graph)]


def view_then_base(x):
    y = x.relu()
    y.transpose(1, 2).clamp_(0.0, 1.0)
    return y + 1.0


def base_then_view(x):
    y = x.relu()
    view = y.transpose(1, 2)
    y.clamp_(0.0, 1.0)
    return view + 1.0


def through_its_result(x):
    y = x.relu().clamp_(0.0, 1.0)
    return y.transpose(1, 2) + 1.0


def other_piece(x):
    a, b = x.relu().chunk(2, 1)
    a.clamp_(0.0, 1.0)
    return b + 1.0


def whole_of_a_piece(x):
    y = x.relu()
    a, b = y.chunk(2, 1)
    a.clamp_(0.0, 1.0)
    return y + b.sum()


def copied(x):
    y = x.relu()
    z = y * 1.0
    z.clamp_(0.0, 1.0)
    return y + 1.0


@pytest.mark.parametrize("function", [view_then_base, base_then_view, whole_of_a_piece])
def test_found(function):
    found = reads(function)
    assert found
    assert {write for write, _ in found} == {"aten::clamp_"}
    assert "aten::add" in {read for _, read in found}


@pytest.mark.parametrize("function", [through_its_result, other_piece, copied])
def test_not_found(function):
    assert reads(function) == []


def test_values_that_share_memory_at_import_are_left_out():
    graph = torch.jit.trace(base_then_view, torch.ones(2, 4, 3), check_trace=False).graph
    written = next(node for node in graph.nodes() if node.kind() == "aten::clamp_")
    name = next(iter(written.inputs())).debugName()
    assert list(stale_reads(graph))
    assert not list(stale_reads(graph, {name}))
