"""What the driver of an evaluation and its workers say to each other; see `spread.py` and `unit_worker.py`.

Python pickles them on their way between the processes of one run: from a driver to workers that it started itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantvm.data import Preprocessing, Sample
from quantvm.data.prepared import PreparedImages
from quantvm.errors import QuantvmError
from quantvm.jobs.evaluation.parts import Part
from quantvm.jobs.evaluation.units import Shard, Side
from quantvm.models.quantization import Quantization
from quantvm.runtime.target import Machine
from quantvm.score.parity import OutputShapeError
from quantvm.workload.program import Program


@dataclass(frozen=True)
class NetworkJob:
    """A kept network as a worker opens it.

    Attributes:
        key: others have other ones.
        folder: of its files.
        program: how the quantized program is kept, see `kept_program`.
        own: the quantized program, where that is a file of the user's own.
        codes: the file of the compiled code and its SHA-256, by the numerics that were asked for.
        float_folder, float_program: where and how the float model is kept; None if it is not needed.
        machine: what was compiled for; the threads of both engines.
        quantization: whose engine PyTorch has.
        preprocessing: how images become its input.
        batch_size: images in one call.
        images: what was decoded before; where its folder is not seen, images are decoded again.
        software: what workers must have installed, too, since bits depend on it.
    """

    key: str
    folder: Path
    program: Mapping[str, Any]
    own: Program | None
    codes: Mapping[str, tuple[str, str]]
    float_folder: Path | None
    float_program: Mapping[str, Any] | None
    machine: Machine
    quantization: Quantization
    preprocessing: Preprocessing
    batch_size: int
    images: PreparedImages
    software: Mapping[str, str | None]

    @property
    def files(self) -> dict[Path, str]:
        """Its files in the run folder with their SHA-256; a file of the user's own is not among them."""
        found = {self.folder / name: digest for name, digest in self.codes.values()}
        if self.program["file"] is not None:
            found[self.folder / self.program["file"]] = self.program["sha256"]
        if self.float_folder is not None and self.float_program is not None:
            found[self.float_folder / self.float_program["file"]] = self.float_program["sha256"]
        return found


@dataclass(frozen=True)
class ShardTask:
    """What is missing of a network's units on one shard.

    Attributes:
        shard: the images.
        done: what is known of each unit already.
        wanted: how many of the shard's images each unit needs.
        fingerprints: of each unit's part.
        cpu: only a worker with a processor of this name may do it; None: any worker.
    """

    shard: Shard
    done: Mapping[Side, Part]
    wanted: Mapping[Side, int]
    fingerprints: Mapping[Side, str]
    cpu: str | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images that are to be read: from a beginning of a batch on."""
        start = min(len(self.done[side]) for side in self.wanted)
        return self.shard.samples[start : max(self.wanted.values())]


@dataclass(frozen=True)
class Opened:
    """A worker is ready.

    Attributes:
        key: of the network.
        cpu: the name of its processor.
        worker: machine and process, for messages.
    """

    key: str
    cpu: str
    worker: str


@dataclass(frozen=True)
class Computed:
    """The units of a task."""

    key: str
    parts: Mapping[Side, Part]


@dataclass(frozen=True)
class Failed:
    """Opening a network or computing a task raised an error.

    Attributes:
        key: of the network.
        error: what was raised, or a QuantvmError with its text.
        stack: as Python prints it.
        parts: what was computed before.
    """

    key: str
    error: Exception
    stack: str
    parts: Mapping[Side, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, error: Exception, parts: Mapping[Side, Part]) -> Failed:
        """Returns the message about an error that is being handled."""
        stack = traceback.format_exc()
        told = f"{type(error).__name__}: {error}"
        is_ours = isinstance(error, QuantvmError | OutputShapeError) and error.args == (str(error),)
        # errors of foreign libraries may need arguments that do not travel
        return cls(key, error if is_ours else QuantvmError(told), stack, parts)


@dataclass(frozen=True)
class Died:
    """A worker ended without an answer; `reason` is a clause."""

    reason: str


Request = NetworkJob | ShardTask
Answer = Opened | Computed | Failed | Died
