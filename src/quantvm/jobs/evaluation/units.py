"""How an evaluation is cut into units of work: one side of one model on one shard of the images.

Images are taken in an order that looks random and depends only on their ids and the seed. So every beginning of the
work is a random sample of the whole, and the first 10,000 of 50,000 images are the same images in the same batches as
a run of 10,000. Batches are cut once for the whole run: some engines' bits depend on the size of a batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from quantvm.data import Dataset, Sample
from quantvm.data.dataset import draw_order

FP32 = "fp32"
"""The numerics of the side of a float model, which belongs to no flow."""


@dataclass(frozen=True)
class Side:
    """What gives one answer for each image: a float model, or a model of a flow under some numerics with its reference.

    Attributes:
        model: its name.
        flow: how it was quantized; empty for the float model.
        numerics: what TVM was asked to follow; `FP32` for the float model.
    """

    model: str
    flow: str
    numerics: str

    @classmethod
    def of_float(cls, model: str) -> Side:
        """Returns the side of a float model."""
        return cls(model, "", FP32)

    @property
    def is_float(self) -> bool:
        """Whether it is a float model."""
        return self.numerics == FP32

    @property
    def name(self) -> str:
        """A name for its folder: other sides have others."""
        return folder_name(self.model, self.flow, self.numerics)


@dataclass(frozen=True)
class Shard:
    """A piece of the images: whole batches, in the order of evaluation.

    Attributes:
        index: its place among all shards.
        samples: its images.
        batch_size: images in a batch; the last batch of the last shard may be smaller.
        start: how many images the shards before it have.
    """

    index: int
    samples: tuple[Sample, ...]
    batch_size: int = 1
    start: int = 0

    def __len__(self) -> int:
        return len(self.samples)


def shards_of(dataset: Dataset, *, seed: int, batch_size: int, shard_size: int) -> list[Shard]:
    """Returns the images as shards, in the order of evaluation.

    Args:
        dataset: the images.
        seed: of their order.
        batch_size: images in a batch.
        shard_size: images in a shard at least; it is rounded up to whole batches. The last shard may be smaller.
    """
    by_id = {sample.id: sample for sample in dataset.samples}
    ordered = [by_id[name] for name in draw_order(by_id, seed)]
    size = -(-shard_size // batch_size) * batch_size
    starts = range(0, len(ordered), size)
    return [Shard(i, tuple(ordered[start : start + size]), batch_size, start) for i, start in enumerate(starts)]


def folder_name(*words: str) -> str:
    """Returns a file name made of words: readable, and another one for other words."""
    plain = ".".join(re.sub(r"[^A-Za-z0-9_-]+", "-", word)[-40:] for word in words if word)
    if plain == ".".join(word for word in words if word):
        return plain
    return f"{plain}-{sha256(repr(words).encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
