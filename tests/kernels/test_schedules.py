"""Schedules: which are worth measuring, which can be, and the files that keep the measured ones."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvm.errors import ConfigError, OutputError
from quantvm.kernels.conv.dot import DOT_PRODUCTS, VNNI512
from quantvm.kernels.schedule.schedule import (
    Conv2dShape,
    Schedule,
    Work,
    choose_schedule,
    schedule_problem,
    shortlist,
    with_other_tasks,
)
from quantvm.kernels.schedule.schedules import (
    MEASURED,
    ScheduleFile,
    ScheduleRecord,
    Schedules,
    read_schedules,
    write_schedules,
)

WIDE = Conv2dShape(14, 14, 64, 96, kernel=(3, 3), padding=(1, 1, 1, 1))
POINTWISE = Conv2dShape(7, 7, 64, 96)
TILE = Schedule(6, 2, 2, 1)
RECORD = ScheduleRecord(Work(WIDE, "vnni", 2), TILE, 90.5, 100.25)
MEASURED_ON = {"cpu": "a CPU", "tvm": "0"}

SHAPES = st.builds(
    lambda height, width, in_groups, out_groups, groups, kernel, stride: Conv2dShape(
        height,
        width,
        in_groups * groups,
        out_groups * groups,
        (kernel, kernel),
        (stride, stride),
        (kernel // 2,) * 4,
        groups=groups,
    ),
    *(st.integers(1, 60), st.integers(1, 60), st.integers(1, 80), st.integers(1, 130)),
    *(st.sampled_from([1, 1, 1, 2]), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2])),
)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from(DOT_PRODUCTS), st.integers(1, 4))
def test_what_is_measured_can_be_built_and_begins_with_the_models_choice(shape, dot, threads):
    work = Work(shape, dot.name, threads)
    listed = shortlist(work, 6)
    assert listed[0] == choose_schedule(work)
    assert len({(s.pixels, s.vectors, s.tile_rows) for s in listed}) == len(listed)
    others = with_other_tasks(listed[0], work)
    assert listed[0] not in others
    assert [schedule_problem(schedule, shape, dot) for schedule in (*listed, *others)] == [None] * len(listed + others)


def test_tiles_of_several_rows_are_measured_where_a_row_is_short():
    assert any(
        schedule.tile_rows > 1 for schedule in shortlist(Work(replace(WIDE, in_height=7, in_width=7), "vnni", 1), 3)
    )
    assert not any(schedule.tile_rows > 1 for schedule in shortlist(Work(replace(WIDE, in_width=56), "vnni", 1), 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": 0}, "at least 1"),
        ({"channel_tasks": -1}, "at least 1"),
        ({"pixels": 15}, "15 pixels in rows of 14"),
        ({"tile_rows": 2}, "2 rows that are 6 pixels wide, expected 14"),
        ({"pixels": 14, "vectors": 3}, "14 pixels and 3 vectors, expected at most 9"),
        ({"pixels": 14, "vectors": 2, "tile_rows": 2}, "28 pixels and 2 vectors"),
    ],
)
def test_schedules_that_cannot_be(changes, message):
    assert message in schedule_problem(replace(TILE, **changes), WIDE, VNNI512)


def test_a_record_is_found_by_what_the_kernel_is_made_for():
    schedules = Schedules([RECORD, replace(RECORD, work=Work(POINTWISE, "vnni", 2), schedule=Schedule(14, 2, 1, 1))])
    assert len(schedules) == 2
    assert schedules.find(Work(WIDE, "vnni", 2)) == TILE
    assert schedules.find(Work(WIDE, "vnni", 1)) is None
    assert schedules.find(Work(WIDE, DOT_PRODUCTS[1].name, 2)) is None
    assert schedules.find(Work(replace(WIDE, stride=(2, 2)), "vnni", 2)) is None
    # a pointwise convolution is one of all pixels in a row, whatever the image's sides
    assert schedules.find(Work(Conv2dShape(1, 49, 64, 96), "vnni", 2)) == Schedule(14, 2, 1, 1)


def test_the_later_of_two_records_counts():
    other = replace(RECORD, schedule=Schedule(4, 3, 2, 1))
    assert Schedules([RECORD, other]).find(Work(WIDE, "vnni", 2)) == other.schedule


def test_the_digest_is_of_what_can_be_found():
    plain = Schedules([RECORD]).digest()
    assert plain == Schedules([replace(RECORD, time_us=1.0)]).digest()
    works = [replace(RECORD.work, threads=1), replace(RECORD.work, dot="avx2")]
    others = [replace(RECORD, schedule=Schedule(4, 3, 2, 1)), *(replace(RECORD, work=work) for work in works)]
    assert len({plain, Schedules().digest(), *(Schedules([other]).digest() for other in others)}) == 5


def test_a_file_gives_back_what_was_written_and_one_line_for_each(tmp_path):
    path = tmp_path / "made" / "cpu.json"
    second = replace(RECORD, work=replace(RECORD.work, threads=1))
    write_schedules(path, ScheduleFile("cpu", MEASURED_ON, (RECORD, second)))
    assert read_schedules(path) == ScheduleFile("cpu", MEASURED_ON, (second, RECORD))
    assert sum('"dot"' in line for line in path.read_text().splitlines()) == 2
    assert [file.name for file in path.parent.iterdir()] == ["cpu.json"]


def content(**changes):
    whole = asdict(RECORD)
    record = {**whole.pop("work"), **whole, **changes.pop("record", {})}
    for name in ("shape", "schedule"):
        record[name] = {**record[name], **changes.pop(name, {})}
    return {"schema_version": 1, "mcpu": "cpu", "measured_on": {}, "records": [record], **changes}


def test_what_the_test_writes_is_right_but_for_its_change(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(content()))
    assert read_schedules(tmp_path / "f.json").records == (RECORD,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no schedules"),
        ("[]", "holds no schedules"),
        (json.dumps(content(schema_version=2)), "schema version 2, expected 1"),
        (json.dumps(content(records=[{}])), "holds no schedules"),
        (json.dumps(content(shape={"kernel": [3]})), r"kernel is \(3,\), expected integers"),
        (json.dumps(content(shape={"in_width": "14"})), "in_width is '14', expected an integer"),
        (json.dumps(content(schedule={"pixels": 2.5})), "pixels is 2.5, expected an integer"),
        (json.dumps(content(schedule={"colour": 1})), "colour"),
        (json.dumps(content(schedule={"pixels": 40})), "record 1: tiles of 40 pixels in rows of 14"),
        (json.dumps(content(record={"dot": "sse"})), "record 1: dot product 'sse', expected one of vnni"),
        (json.dumps(content(record={"threads": 0})), "record 1: 0 threads"),
    ],
)
def test_a_file_that_is_not_right_is_named_with_what_to_do(text, message, tmp_path):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_schedules(path)
    assert str(path) in str(error.value)
    assert "quantvm tune" in str(error.value)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        write_schedules(tmp_path / "taken" / "cpu.json", ScheduleFile("cpu", {}, (RECORD,)))


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_the_projects_own_records_can_all_be_built(path):
    found = read_schedules(path)
    assert found.mcpu == path.stem
    assert found.records
    assert len(Schedules(found.records)) == len(found.records)
    assert all(record.time_us < record.model_time_us for record in found.records)
