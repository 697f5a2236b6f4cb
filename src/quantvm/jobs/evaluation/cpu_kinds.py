"""Whether kinds of processors compute the same bits: workers of each kind answer the same images.

TVM's code is the same file on all of them and uses no instruction whose result depends on the kind, so its bits must be
the same. PyTorch chooses kernels by the processor, so its bits may not be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from quantvm.jobs.evaluation.parts import Part, cpus_of
from quantvm.jobs.evaluation.schema import SameBitsRow
from quantvm.jobs.evaluation.unit_messages import ShardTask
from quantvm.jobs.evaluation.units import Shard, Side

_BATCHES = 4


def proof_tasks(
    shard: Shard, batch_size: int, fingerprints: dict[Side, str], cpus: Collection[str]
) -> Iterable[ShardTask]:
    """Returns for each kind of processor the task of computing the first batches of a shard.

    Args:
        shard: of the run.
        batch_size: of the run.
        fingerprints: of the sides that are compared.
        cpus: the kinds.
    """
    few = dataclasses.replace(shard, samples=shard.samples[: _BATCHES * batch_size])
    for cpu in cpus:
        nothing = dict.fromkeys(fingerprints, Part())
        yield ShardTask(few, nothing, dict.fromkeys(fingerprints, len(few)), fingerprints, cpu)


def same_bits(parts: Sequence[Part]) -> SameBitsRow | None:
    """Returns how many images have the same raw outputs on all kinds of processors; None for fewer than two kinds.

    Args:
        parts: of one side, the same images on each kind.
    """
    parts = [part for part in parts if len(part)]
    if len(parts) < 2 or any(part.ids != parts[0].ids for part in parts):
        return None
    return {
        "cpus": cpus_of(parts),
        "n_images": len(parts[0]),
        "tvm": _n_same(parts, "tvm_digest"),
        "torch": _n_same(parts, "torch_digest") if all("torch_digest" in part.columns for part in parts) else None,
    }


def _n_same(parts: Sequence[Part], column: str) -> int:
    first = parts[0].columns[column]
    return int(np.logical_and.reduce([part.columns[column] == first for part in parts[1:]]).sum())
