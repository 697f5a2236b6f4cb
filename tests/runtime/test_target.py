"""The processor as Linux describes it, and targets as they are written."""

from __future__ import annotations

import platform

import pytest

from quantvm.errors import CompileError
from quantvm.kernels.builder import target_features
from quantvm.runtime import target

INTEL = """processor\t: {processor}
model name\t: Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512bw avx512vl avx512_vnni
"""
ARM = """processor\t: {processor}
BogoMIPS\t: 243.75
Features\t: fp asimd asimddp i8mm sve
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Returns a function that makes the given text the description of the processor, with all CPUs allowed."""

    def describe(text: str | None, allowed: set[int]) -> None:
        path = tmp_path / "cpuinfo"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(target, "_CPUINFO", path)
        monkeypatch.setattr(target.os, "sched_getaffinity", lambda _: allowed, raising=False)
        target._cpuinfo.cache_clear()

    yield describe
    monkeypatch.undo()
    target._cpuinfo.cache_clear()


def intel(cores: int, sockets: int = 1) -> str:
    """Describes two hyperthreads a core, as Linux numbers them: the second ones after all of the first."""
    rows = [(s, c) for s in range(sockets) for c in range(cores)] * 2
    return "\n".join(INTEL.format(processor=i, socket=s, core=c) for i, (s, c) in enumerate(rows))


def test_hyperthreads_are_not_cores(cpuinfo):
    cpuinfo(intel(4), set(range(8)))
    assert target.physical_cores() == 4
    assert target.cpu_model() == "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz"
    assert target.cpu_features() == ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")


def test_cores_of_two_sockets_with_equal_numbers_are_different(cpuinfo):
    cpuinfo(intel(4, sockets=2), set(range(16)))
    assert target.physical_cores() == 8


@pytest.mark.parametrize(("allowed", "cores"), [({0, 4}, 1), ({0, 1}, 2), ({3}, 1), ({0, 1, 4, 5}, 2)])
def test_cores_that_the_process_may_not_use_do_not_count(cpuinfo, allowed, cores):
    cpuinfo(intel(4), allowed)
    assert target.physical_cores() == cores


def test_arm_names_no_cores(cpuinfo):
    cpuinfo("\n".join(ARM.format(processor=i) for i in range(4)), {0, 1, 2})
    assert target.physical_cores() == 3
    assert target.cpu_features() == ("asimd", "asimddp", "i8mm", "sve")
    assert target.cpu_model() == (platform.processor() or platform.machine())


@pytest.mark.parametrize("text", [None, "", "garbage without a colon\n\n\n", "processor: x\n"])
def test_no_description_is_no_error(cpuinfo, text):
    cpuinfo(text, {0, 1})
    assert target.physical_cores() == 2
    assert target.cpu_features() == ()
    assert target.cpu_model()


# ------------------------------------------------------------------ targets


def test_native_is_this_machine():
    assert target.target_text(target.parse_target("native")) == target.host_target()
    assert target.host_target().startswith("llvm -mcpu=")
    assert target.target_text(target.parse_target(target.host_target())) == target.host_target()


def test_features_follow_from_the_cpu_and_from_what_is_added():
    haswell, cascadelake = (target_features(target.parse_target(f"llvm -mcpu={c}")) for c in ("haswell", "cascadelake"))
    assert "avx2" in haswell
    assert "avx512vnni" not in haswell
    assert "avx512vnni" in cascadelake
    added = target_features(target.parse_target("llvm -mcpu=skylake-avx512 -mattr=+avx512vnni"))
    assert "avx512vnni" in added
    taken = target_features(target.parse_target("llvm -mcpu=cascadelake -mattr=-avx512vnni"))
    assert "avx512vnni" not in taken


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["of kind ''", "expected 'native'"]),
        ("cuda", ["of kind 'cuda'", "llvm -mcpu=NAME"]),
        ("native -mcpu=haswell", ["of kind 'native'"]),
        ("llvm haswell", ["unknown options haswell", "-mattr, -mcpu, -mtriple"]),
        ("llvm -mcpu", ["unknown options -mcpu"]),
        ("llvm -mcpu= -opt-level=3", ["unknown options -mcpu=, -opt-level=3"]),
        ("llvm -mcpu=znver99", ["knows no CPU 'znver99'", "quantvm list targets"]),
    ],
)
def test_targets_that_make_no_sense(text, messages):
    with pytest.raises(CompileError) as caught:
        target.parse_target(text)
    assert [m for m in messages if m not in str(caught.value)] == [], str(caught.value)
