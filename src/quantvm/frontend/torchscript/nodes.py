"""The module and the source line from which a node of a TorchScript graph comes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

_OF_TORCH = re.compile(r"(site|dist)-packages/torch(vision)?/")


def all_nodes(block: Any) -> Iterator[Any]:
    """Yields the nodes of a graph or block and of all nested blocks."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from all_nodes(inner)


def module_path(node: Any) -> str:
    """Returns the module path of a node, e.g. layer1.0.conv1."""
    scope = node.scopeName()
    return scope.rsplit("/", 1)[-1].removeprefix("__module.").removeprefix("__module") if scope else ""


def weight_owner(node: Any, paths: dict[str, str]) -> str:
    """Returns the path of the module whose packed weight a node reads; a graph from a file has no scopes to tell it."""
    read = (paths.get(value.debugName(), "") for value in node.inputs())
    return next((path.split("._packed_params")[0] for path in read if path.endswith("._packed_params")), "")


def source_line(node: Any) -> str:
    """Returns the Python file and line where a node was recorded: the innermost one in the model's own code, if any."""
    lines = [line.strip() for line in node.sourceRange().splitlines() if ".py" in line]
    inside = list(itertools.takewhile(lambda line: "/torch/jit/_trace.py" not in line, lines))
    own = [line for line in inside if not _OF_TORCH.search(line)]
    of_a_module = [line for line in inside if not line.split("(")[0].endswith("/torch/_ops.py")]
    return (own or of_a_module or lines or ["no source line"])[0].split("/")[-1].rstrip(":")
