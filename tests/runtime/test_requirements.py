"""What code needs of a machine."""

import re
from pathlib import Path

import pytest

from quantvm.inventory import _TARGETS
from quantvm.kernels import builder
from quantvm.runtime.requirements import _LINUX_NAMES, requirements_of
from quantvm.runtime.target import parse_target

SOURCES = Path(builder.__file__).parent


def test_every_extension_that_a_kernel_asks_for_is_required_of_the_machine():
    # a name that is missing in the table would let code run, and crash, on a machine without the extension
    known = {name for target, *_ in _TARGETS for name in builder.target_features(parse_target(target))}
    words = set(re.findall(r'"([a-z0-9.-]+)"', "".join(path.read_text() for path in SOURCES.rglob("*.py"))))
    asked_for = words & known
    assert {"avx2", "avx512vnni", "avxvnni"} <= asked_for
    assert asked_for <= set(_LINUX_NAMES)


@pytest.mark.parametrize(
    ("target", "needed"),
    [
        ("llvm -mcpu=haswell", {"avx2", "fma"}),
        ("llvm -mcpu=cascadelake", {"avx2", "avx512f", "avx512_vnni"}),
        ("llvm -mcpu=alderlake", {"avx2", "avx_vnni"}),
    ],
)
def test_requirements_are_named_as_linux_does(target, needed):
    found = requirements_of(parse_target(target))
    assert needed <= set(found.cpu_features)
    assert found.architecture == "x86_64"
