"""Measured schedules: the fastest one for each convolution on one kind of CPU, in JSON files.

A file holds the records of one CPU, one per line: a geometry, a dot product and a number of threads; the fastest
schedule; and its time and that of the cost model's choice. `measured/` holds the files that come with the project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quantvm.errors import ConfigError
from quantvm.kernels.conv.dot import BY_NAME
from quantvm.storage.output_files import make_folder, write_file
from quantvm.storage.regular_files import open_regular

from .schedule import Conv2dShape, Schedule, Work, schedule_problem

SCHEMA_VERSION = 1
MEASURED = Path(__file__).parent / "measured"
"""Folder of the records that come with the project, one file for each CPU, as znver5.json."""


@dataclass(frozen=True)
class ScheduleRecord:
    """The fastest schedule of a convolution.

    Attributes:
        work: the convolution, as `Work.merged` gives it.
        schedule: the fastest schedule.
        time_us: time of one call for one image, in microseconds, with weights outside of the first-level caches.
        model_time_us: the same with the schedule that the cost model chose.
    """

    work: Work
    schedule: Schedule
    time_us: float
    model_time_us: float


@dataclass(frozen=True)
class ScheduleFile:
    """The content of a file: the records of one CPU.

    Attributes:
        mcpu: LLVM's name of the CPU.
        measured_on: the processor's own name, and versions on which the times depend.
        records: one for each convolution.
    """

    mcpu: str
    measured_on: dict[str, str]
    records: tuple[ScheduleRecord, ...]


class Schedules:
    """The fastest known schedules of one CPU, by geometry, dot product and threads."""

    def __init__(self, records: Iterable[ScheduleRecord] = ()) -> None:
        """Takes records; the later of two for the same convolution wins."""
        self._records = {record.work.merged(): record for record in records}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[ScheduleRecord]:
        return iter(self._records.values())

    def find(self, work: Work) -> Schedule | None:
        """Returns the schedule to use, or None if nothing was measured."""
        record = self._records.get(work.merged())
        return None if record is None else record.schedule

    def digest(self) -> str:
        """Returns the SHA-256 of all schedules that `find` can return."""
        lines = sorted(
            repr((work.shape, work.dot, work.threads, record.schedule)) for work, record in self._records.items()
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_schedules(path: Path) -> ScheduleFile:
    """Returns the records of a file.

    Raises:
        ConfigError: the file is damaged, of another version, or has an impossible schedule.
    """
    advice = "remove the file, or write it anew with quantvm tune"
    try:
        with open_regular(path, ConfigError) as file:
            content = json.loads(file.read().decode("utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            found = content["schema_version"]
            raise ConfigError(f"{path} has schema version {found!r}, expected {SCHEMA_VERSION}; {advice}")
        records = tuple(_record(item) for item in content["records"])
        found = ScheduleFile(str(content["mcpu"]), dict(content["measured_on"]), records)
    except ConfigError as error:
        raise (
            error if str(path) in str(error) else ConfigError(f"{path} holds no schedules ({error}); {advice}")
        ) from None
    except Exception as error:  # JSON may hold anything in any place
        raise ConfigError(f"{path} holds no schedules ({type(error).__name__}: {error}); {advice}") from error
    problems = [f"record {i + 1}: {text}" for i, record in enumerate(records) if (text := _problem(record))]
    if problems:
        raise ConfigError(f"{path} has impossible schedules: {'; '.join(problems)}; {advice}")
    return found


def write_schedules(path: Path, content: ScheduleFile) -> None:
    """Writes records, sorted, one on each line; the file appears whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    head = {"schema_version": SCHEMA_VERSION, "mcpu": content.mcpu, "measured_on": content.measured_on}
    lines = [json.dumps(_item(record)) for record in sorted(content.records, key=_order)]
    text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    make_folder(path.parent)
    write_file(path, text.encode())


def _order(record: ScheduleRecord) -> tuple[Any, ...]:
    work = record.work
    return (work.dot, work.threads, *asdict(work.shape).values())


def _item(record: ScheduleRecord) -> dict[str, Any]:
    times = {"time_us": round(record.time_us, 2), "model_time_us": round(record.model_time_us, 2)}
    work = record.work
    return {
        "dot": work.dot, "threads": work.threads, "shape": asdict(work.shape),
        "schedule": asdict(record.schedule), **times,
    }  # fmt: skip


def _record(item: dict[str, Any]) -> ScheduleRecord:
    shape: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in item["shape"].items()}
    return ScheduleRecord(
        Work(_of_integers(Conv2dShape(**shape)), str(item["dot"]), int(item["threads"])).merged(),
        _of_integers(Schedule(**item["schedule"])), float(item["time_us"]), float(item["model_time_us"]),
    )  # fmt: skip


def _of_integers(value: Any) -> Any:
    for field in fields(value):
        held = getattr(value, field.name)
        expected = len(field.default) if isinstance(field.default, tuple) else None
        numbers = held if isinstance(held, tuple) else (held,)
        if (len(held) if isinstance(held, tuple) else None) != expected or not all(type(n) is int for n in numbers):
            raise TypeError(f"{field.name} is {held!r}, expected {'an integer' if expected is None else 'integers'}")
    return value


def _problem(record: ScheduleRecord) -> str | None:
    work = record.work
    if work.dot not in BY_NAME:
        return f"dot product {work.dot!r}, expected one of {', '.join(BY_NAME)}"
    if work.threads < 1:
        return f"{work.threads} threads"
    return schedule_problem(record.schedule, work.shape, work.product)
