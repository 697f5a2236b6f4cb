"""One network of an evaluation: what is known about it, as objects and as the row that its folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from quantvm.jobs.evaluation.kept_programs import NotKeptError
from quantvm.jobs.evaluation.units import Side
from quantvm.workload.runners import Runner

SCHEMA_VERSION = 1
FACTS_FILE = "network.json"
_ROW = ("model", "flow", "facts", "program", "source", "reference", "float_digest", "by_numerics")


@dataclass
class Engines:
    """A network's engines, ready to run.

    Attributes:
        fp32: the float model; None if there is none, or if it is not needed.
        torch: the reference; None if there is none.
        tvm: the compiled code by the numerics that were asked for.
    """

    fp32: Runner | None
    torch: Runner | None
    tvm: dict[str, Runner]


@dataclass
class Network:
    """One model by one flow, compiled for each numerics.

    Attributes:
        model: its name.
        flow: how PyTorch quantized it.
        facts: the fields of ModelRow that hold for all numerics.
        by_numerics: for each numerics that was asked for, what is known about the code: `facts` (fields of ModelRow),
            `numerics` that the code has, `output_scale`, and `digest` of the code.
        reference: SHA-256 of the quantized program; None if it has no digest.
        float_digest: SHA-256 of the float model's weights; None if there is no float model.
        open: returns the engines; the argument says whether the float model is needed.
        program: how the run folder keeps the quantized program; None if it does not.
        source: SHA-256 of a model of the user's own; None for registered models, which their weights tell.
    """

    model: str
    flow: str
    facts: dict[str, Any]
    by_numerics: dict[str, dict[str, Any]]
    reference: str | None
    float_digest: str | None
    open: Callable[[bool], Engines] = field(repr=False)
    program: dict[str, Any] | None = None
    source: str | None = None

    def sides(self, numerics: Sequence[str]) -> list[Side]:
        """Returns what gives answers: the float model if there is one, and a side for each numerics."""
        own = [Side(self.model, self.flow, each) for each in numerics]
        return [*([Side.of_float(self.model)] if self.float_digest else []), *own]

    def fingerprint(self, side: Side) -> str:
        """Returns a digest of what decides the answers of a side, as far as it is the network's."""
        if side.is_float:
            parts = [self.float_digest, self.facts["preprocessing"]]
        else:
            parts = [self.reference, self.facts["preprocessing"], self.by_numerics[side.numerics]["digest"]]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def networks_in(folder: Path) -> list[Network]:
    """Returns what a run folder knows about networks, in the order in which they were made; they cannot be opened."""

    def cannot_open(with_float: bool) -> Engines:
        raise NotKeptError("the network was read for a report")

    found = []
    for path in folder.glob(f"*/{FACTS_FILE}"):
        with suppress(OSError, ValueError):
            row = json.loads(path.read_text())
            if row.get("schema_version") == SCHEMA_VERSION:
                found.append((path.parent.stat().st_mtime_ns, path.parent.name, network_of(row, cannot_open)))
    return [network for _, _, network in sorted(found, key=lambda each: each[:2])]


def row_of(network: Network) -> dict[str, Any]:
    """Returns what network.json holds."""
    return {"schema_version": SCHEMA_VERSION, **{name: getattr(network, name) for name in _ROW}}


def network_of(row: Mapping[str, Any], engines: Callable[[bool], Engines]) -> Network:
    """Returns the network of a row; `engines` opens it."""
    return Network(open=engines, **{name: row[name] for name in _ROW})
