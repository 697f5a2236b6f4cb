"""The images of an evaluation: where they are decoded into, and whether they are still those that a run began with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantvm.data.prepared import Facts, PreparedImages, decoder_identity
from quantvm.errors import ConfigError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.layout import CONTENTS, IMAGES
from quantvm.report.run_folder import RunFolder
from quantvm.storage.output_files import replacing
from quantvm.storage.scratch import scratch_folder
from quantvm.workload.plan import Entry

_SHARE_OF_TMPDIR = 0.25
"""A scratch folder may lie in memory, and other programs need it."""


@contextmanager
def prepared_images(config: RunConfig, entries: Sequence[Entry], folder: RunFolder | None) -> Iterator[PreparedImages]:
    """Yields the place that images are decoded into.

    Args:
        config: says by `image_cache` whether there is one.
        entries: the models, whose preprocessing says what is to be decoded.
        folder: of the run; without one, the place is in a temporary folder until the block ends.
    """
    known = {} if folder is None else {facts.digest: facts.is_turned for facts in _read(folder.path).values()}
    geometries = [entry.spec.preprocessing.geometry for entry in entries if entry.weights is not None]
    if config.image_cache == "none":
        yield PreparedImages(known=known)
    elif config.image_cache != "auto":
        yield PreparedImages(Path(config.image_cache), geometries, decoder_identity(), known)
    elif folder is not None:
        yield PreparedImages(folder.path / IMAGES, geometries, decoder_identity(), known)
    else:
        with scratch_folder("images") as scratch:
            yield PreparedImages(scratch / IMAGES, geometries, decoder_identity(), share=_SHARE_OF_TMPDIR)


def done_with(images: PreparedImages, config: RunConfig) -> None:
    """Removes what was decoded, unless it is in a folder that the user named."""
    if config.image_cache == "auto":
        images.remove()


def check_contents(folder: RunFolder, images: PreparedImages) -> None:
    """Makes sure that the images are those that a run began with, and notes the new ones.

    Raises:
        ConfigError: an image was replaced since, or can no longer be read.
        OutputError: the folder cannot be written.
    """
    there, now = _read(folder.path), images.facts
    replaced = sorted(name for name, facts in now.items() if name in there and there[name].digest != facts.digest)
    if replaced:
        others = f" and {len(replaced) - 1:,} others were" if len(replaced) > 1 else " was"
        raise ConfigError(
            f"cannot go on in {folder.path}: {replaced[0]}{others} replaced since the run began, and its numbers are "
            "of the images before; put them back, or use another folder with --out"
        )
    new = {name: facts for name, facts in now.items() if facts.reason is None and name not in there}
    if new:
        _write(folder.path, {**there, **new})


def _read(folder: Path) -> dict[str, Facts]:
    """Returns what a run folder knows about images, by the names of their sources."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / CONTENTS
    if not path.exists():
        return {}
    try:
        columns = pq.read_table(path, columns=["name", "blake2b", "is_turned"]).to_pydict()
        names = (name.decode("utf-8", "surrogateescape") for name in columns["name"])
        rows = zip(names, columns["blake2b"], columns["is_turned"], strict=True)
        return {name: Facts(digest.hex(), None, is_turned) for name, digest, is_turned in rows}
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); use another folder with --out") from error


def _write(folder: Path, facts: dict[str, Facts]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(facts)
    table = pa.table(
        {
            "name": pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.binary()),
            "blake2b": pa.array([bytes.fromhex(facts[name].digest) for name in names], pa.binary()),
            "is_turned": pa.array([facts[name].is_turned for name in names], pa.bool_()),
        }
    )
    with replacing(folder / CONTENTS) as unfinished:
        pq.write_table(table, unfinished)
