"""The measured search on small convolutions, and which schedules a compilation takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from quantvm.compiler.cache_key import cache_key
from quantvm.compiler.schedule_files import schedules_for, target_cpu, user_schedules
from quantvm.compiler.schedule_search import gains, merged, tune
from quantvm.errors import ConfigError, MachineError
from quantvm.frontend import from_torch
from quantvm.kernels.conv.dot import select_dot
from quantvm.kernels.schedule.schedule import Conv2dShape, Schedule, Work, schedule_problem
from quantvm.kernels.schedule.schedules import ScheduleFile, ScheduleRecord, Schedules, write_schedules
from quantvm.lowering import LoweringOptions, lower
from quantvm.runtime.target import parse_target
from quantvm.tvm_compat import build_executable, native_target, start_vm, use_threads
from tests.quantized_modules import SmallNetwork, image

SMALL = Conv2dShape(9, 9, 16, 40, kernel=(3, 3), padding=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path))


def a_record(**changes):
    return replace(ScheduleRecord(Work(SMALL, "vnni", 1), Schedule(3, 1, 1, 1), 80.0, 100.0), **changes)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_measures_and_returns_a_schedule_that_can_be(threads):
    target = native_target()
    dot = select_dot(target)
    work = [Work(SMALL, dot.name, threads)] if threads == 1 else [Work(Conv2dShape(1, 25, 16, 40), dot.name, threads)]
    with ThreadPoolExecutor(1) as thread:  # TVM's pool of this one may have begun with fewer threads
        found = thread.submit(lambda: list(tune(work, target))).result()
    assert [record.work for record in found] == work
    for record in found:
        assert schedule_problem(record.schedule, record.work.shape, dot) is None
        assert 0 < record.time_us <= record.model_time_us


def test_a_record_replaces_an_older_one_and_one_without_gain_removes_it():
    old, other = a_record(), a_record(work=Work(SMALL, "vnni", 2))
    assert gains(old)
    assert not gains(a_record(time_us=98.0))
    better = a_record(schedule=Schedule(4, 1, 1, 1), time_us=70.0)
    assert merged([old, other], [better]) == (better, other)
    assert merged([old, other], [a_record(time_us=98.0)]) == (other,)


def test_the_users_own_records_come_over_those_of_the_project(tmp_path, monkeypatch):
    target = parse_target("llvm -mcpu=cascadelake")
    monkeypatch.setattr("quantvm.kernels.schedule.schedules.MEASURED", tmp_path / "measured")
    assert len(schedules_for(target)) == 0
    other = a_record(work=Work(SMALL, "vnni", 2))
    write_schedules(tmp_path / "measured" / "cascadelake.json", ScheduleFile("cascadelake", {}, (a_record(), other)))
    own = a_record(schedule=Schedule(4, 1, 1, 1))
    write_schedules(user_schedules("cascadelake"), ScheduleFile("cascadelake", {}, (own,)))
    assert set(schedules_for(target)) == {own, other}
    assert len(schedules_for(parse_target("llvm -mcpu=haswell"))) == 0
    assert len(schedules_for(parse_target("llvm -mtriple=x86_64-linux-gnu"))) == 0


def test_a_damaged_file_of_the_user_is_an_error_that_names_it():
    target = native_target()
    path = user_schedules(target_cpu(target))
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ConfigError, match="quantvm tune"):
        schedules_for(target)


def test_new_records_make_compiled_code_stale():
    target = native_target()
    module = from_torch(SmallNetwork(), image(1, 3, 17, 19), engine="fbgemm")

    def key():
        return cache_key(module, LoweringOptions(target, "torch", schedules=schedules_for(target)))

    before = key()
    mcpu = target_cpu(target)
    write_schedules(user_schedules(mcpu), ScheduleFile(mcpu, {}, (a_record(),)))
    after = key()
    assert before != after
    write_schedules(user_schedules(mcpu), ScheduleFile(mcpu, {}, (a_record(time_us=1.0),)))
    assert key() == after


def test_a_recorded_schedule_is_used_and_gives_the_same_bits():
    target = native_target()
    module = from_torch(SmallNetwork(), image(1, 3, 17, 19), engine="fbgemm")
    x_f32 = image(2, 3, 17, 19).numpy()

    def run(schedules):
        low, report = lower(module, LoweringOptions(target, schedules=schedules))
        return low, report, start_vm(build_executable(low, target))["main"]

    plain, report, expected = run(Schedules())
    assert len(report.convolutions) == len(set(report.convolutions)) > 0
    records = [
        ScheduleRecord(Work(shape, dot, 1), Schedule(1, 1, 1, 1), 1.0, 2.0) for shape, dot in report.convolutions
    ]
    low, again, actual = run(Schedules(records))
    assert again.convolutions == report.convolutions
    assert low.script(show_meta=False) != plain.script(show_meta=False)

    def outputs(function):
        import tvm

        found = function(tvm.runtime.tensor(np.ascontiguousarray(x_f32)))
        return found.numpy()

    np.testing.assert_array_equal(outputs(actual), outputs(expected))


def test_a_pool_that_began_with_fewer_threads_is_told_and_not_measured(monkeypatch):
    target = native_target()
    work = [Work(SMALL, select_dot(target).name, 2)]

    def search():
        monkeypatch.setenv("TVM_NUM_THREADS", "1")
        assert use_threads(1) == 1
        return list(tune(work, target))

    with ThreadPoolExecutor(1) as thread, pytest.raises(MachineError, match="1 threads in this process, asked for 2"):
        thread.submit(search).result()
