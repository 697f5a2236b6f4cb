"""Lists the images of tables: Parquet and Arrow files, read by pyarrow, and TFRecord files. Only labels are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.data.classes import N_CLASSES, WNID, index_of_wnid, indices_of_name, plain_name
from quantvm.data.sources import FileSlice, ParquetRow
from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular

_LABEL_NAMES = ("label", "labels", "cls", "class", "class_id", "class_idx", "target", "wnid", "synset")
_MOST_OTHER_NAMES = 10  # lists of the 1,000 classes name some of them differently


@dataclass(frozen=True)
class Row:
    """An image of a table.

    Attributes:
        source: Where its bytes are.
        label: As the table says it: a class index, a wnid, or None for -1 and nothing.
        original: The name of the file that the row was made from, if the table says it.
    """

    source: FileSlice | ParquetRow
    label: int | str | None
    original: str | None


@dataclass(frozen=True)
class _Columns:
    image: str  # the column of a schema, and the path to the bytes in it
    path: str | None
    label: str | None
    classes: tuple[int | None, ...] | None  # the class index of each label, if the table names its classes


def parquet_rows(file: Path) -> Iterator[Row]:
    """Yields the rows of a Parquet file that holds images; none if it holds no images.

    Raises:
        DataError: It is damaged, was cut off, or its labels number other classes than ImageNet's.
    """
    import pyarrow.parquet as pq

    with (
        _damage_told(file, "a Parquet file"),
        open_regular(file, DataError) as opened,
        pq.ParquetFile(opened) as parquet,
    ):
        columns = _columns_of(parquet.schema_arrow, file)
        if columns is None:
            return
        start = 0
        for group in range(parquet.num_row_groups):
            wanted = [name for name in (columns.path, columns.label) if name is not None]
            n_rows = parquet.metadata.row_group(group).num_rows
            values = parquet.read_row_group(group, columns=wanted, use_threads=False) if wanted else None
            labels, paths = _values(values, columns.label, n_rows), _values(values, columns.path, n_rows)
            for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
                source = ParquetRow(file, group, row, columns.image, str(start + row))
                yield Row(source, _label(label, columns.classes, source), path)
            start += n_rows


def arrow_rows(file: Path) -> Iterator[Row]:
    """Yields the rows of an Arrow file or stream, as the library datasets keeps it in its cache.

    Raises:
        DataError: as `parquet_rows`; also if the file is compressed.
    """
    import pyarrow as pa

    with _damage_told(file, "an Arrow file"), pa.memory_map(str(file)) as mapped:
        begin = mapped.read_buffer(1).address
        mapped.seek(0)
        batches = _arrow_batches(mapped)
        columns, start = None, 0
        for batch in batches:
            batch.validate(full=True)  # pyarrow trusts offsets that it has not checked
            columns = columns or _columns_of(batch.schema, file)
            if columns is None:
                return
            values = batch.column(columns.image.split(".")[0])
            image = values.field(columns.image.split(".")[1]) if "." in columns.image else values
            offsets, data = image.buffers()[1:3]
            places = np.frombuffer(offsets, np.int64 if pa.types.is_large_binary(image.type) else np.int32)
            places = places[image.offset : image.offset + len(image) + 1]
            first = data.address - begin
            if not 0 <= first < file.stat().st_size:
                raise DataError(f"{file}: a compressed Arrow file is not read; convert it to Parquet")
            labels, paths = (_values(batch, name, len(image)) for name in (columns.label, columns.path))
            for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
                source = FileSlice(file, first + int(places[row]), int(places[row + 1] - places[row]), str(start + row))
                yield Row(source, _label(label, columns.classes, source), path)
            start += len(image)


@contextmanager
def _damage_told(file: Path, kind: str) -> Iterator[None]:
    """Has what pyarrow raises on a damaged file told as a DataError."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: damaged or cut off, and cannot be read as {kind}: {error}") from error


def _arrow_batches(mapped: Any) -> Iterator[Any]:
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    yield from stream


def _columns_of(schema: Any, file: Path) -> _Columns | None:
    """Finds the columns by their types: the image is bytes, alone or with the name of its file."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    image = path = None
    for field in schema:
        if pa.types.is_struct(field.type):
            inner = {child.name: child.type for child in field.type}
            if "bytes" in inner and is_bytes(inner["bytes"]):
                image, path = f"{field.name}.bytes", f"{field.name}.path" if "path" in inner else None
        elif is_bytes(field.type) and image is None:
            image = field.name
    if image is None:
        return None
    named = {field.name.lower(): field.name for field in schema}
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    known = [named[name] for name in _LABEL_NAMES if name in named]
    label = known[0] if known else integers[0] if len(integers) == 1 else None
    return _Columns(image, path, label, _classes_of(schema.metadata, label, file))


def _classes_of(metadata: dict[bytes, bytes] | None, label: str | None, file: Path) -> tuple[int | None, ...] | None:
    """Returns what the labels mean by the names that the table gives its classes; None if these are ImageNet's 1,000.

    Raises:
        DataError: The names are others.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list):
        return None
    classes = [_class_of(str(name)) for name in names]
    if len(names) == N_CLASSES:
        others = sum(found is not None and found != place for place, found in enumerate(classes))
        if others <= _MOST_OTHER_NAMES:
            return None
    unknown = [str(name) for name, found in zip(names, classes, strict=True) if found is None]
    if len(unknown) > len(names) // 2 or (unknown and len(names) >= N_CLASSES):
        raise DataError(
            f"{file}: it numbers {len(names):,} classes, of which {len(unknown):,} have no name of exactly one of "
            f"ImageNet's 1,000 classes, such as {', '.join(unknown[:5])}; so its labels are not ImageNet's"
        )
    return tuple(classes)


def _class_of(name: str) -> int | None:
    """Returns the only class that has such a name, or whose wnid stands in it."""
    for wnid in WNID.findall(name):
        if wnid in index_of_wnid():
            return index_of_wnid()[wnid]
    found = indices_of_name().get(plain_name(name.split(",")[0]), ())
    return found[0] if len(found) == 1 else None


def _values(table: Any, column: str | None, n_rows: int) -> Sequence[Any]:
    import pyarrow as pa

    if table is None or column is None:
        return [None] * n_rows
    values = table.column(column.split(".")[0])
    if isinstance(values, pa.ChunkedArray):
        values.validate(full=True)
        values = values.combine_chunks()
    for part in column.split(".")[1:]:
        values = values.field(part)
    found: list[Any] = values.to_pylist()
    return found


def _label(label: Any, classes: tuple[int | None, ...] | None, source: FileSlice | ParquetRow) -> int | str | None:
    if label is None or isinstance(label, str):
        return label
    if not isinstance(label, int) or label < 0:
        return None
    if classes is None:
        return label
    found = classes[label] if label < len(classes) else None
    if found is None:
        raise DataError(f"{source}: its label {label} has no name of exactly one of ImageNet's 1,000 classes")
    return found
