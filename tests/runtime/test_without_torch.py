"""An environment with TVM's runtime and NumPy, and what these need, but no PyTorch: what a deployed model runs in."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import quantvm
from tests.quantized_modules import SmallNetwork, image

SHAPE = (3, 19, 17)
ROOT = Path(__file__).resolve().parent.parent.parent


def required(*names):
    """Returns the distributions that these need on this machine, by their own account, themselves among them."""
    from packaging.requirements import Requirement

    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        needed = map(Requirement, found[name].requires or ())
        left += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a virtual environment that holds `apache-tvm`, `numpy` and quantvm's own sources alone."""
    folder = tmp_path_factory.mktemp("deployed")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for distribution in required("apache-tvm", "numpy").values():
        for file in distribution.files or ():
            first = file.parts[0]
            source = Path(distribution.locate_file(first))
            if first not in ("..", "__pycache__") and source.exists() and not (packages / first).exists():
                (packages / first).symlink_to(source)
    (packages / "quantvm").symlink_to(Path(quantvm.__file__).resolve().parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.backends.quantized.engine = "fbgemm"
    network = SmallNetwork()
    folder = tmp_path_factory.mktemp("model")
    quantvm.compile(network, image(1, *SHAPE), engine="fbgemm", threads=1).save(folder / "small.qvm")
    x = image(3, *SHAPE)
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "expected.npy", network(x).numpy())
    return folder


def call(python, program, folder, **environment):
    """Runs a program in the environment, in the folder; nothing of this process's Python reaches it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, "-c", program], cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_environment_has_no_pytorch(python, saved):
    for package in ("torch", "torchvision", "typer", "pyarrow", "PIL"):
        done = call(python, f"import {package}", saved)
        assert f"No module named '{package}'" in done.stderr, f"{package} is there: the other tests prove nothing"


@pytest.mark.parametrize("runtime_only", ["0", "1"])
def test_a_model_loads_and_runs_with_the_same_bits(python, saved, runtime_only):
    program = """
import numpy as np
import quantvm

model = quantvm.load("small.qvm")
y = model(np.load("x.npy"))
assert np.array_equal(y.view(np.uint32), np.load("expected.npy").view(np.uint32))
print(model.signature.inputs[0].shape_text, model.report.engine, type(y).__name__)
"""
    environment = {"TVM_USE_RUNTIME_LIB": "1"} if runtime_only == "1" else {}
    done = call(python, program, saved, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(n, 3, 19, 17) fbgemm ndarray\n"


def test_a_damaged_model_is_refused_there_as_well(python, saved):
    content = bytearray((saved / "small.qvm").read_bytes())
    content[len(content) // 2] ^= 1
    (saved / "damaged.qvm").write_bytes(content)
    done = call(python, "import quantvm; quantvm.load('damaged.qvm')", saved)
    assert done.stderr.strip().splitlines()[-1].startswith("quantvm.errors.ModelFileError: damaged.qvm is damaged: ")


def test_the_example_of_deployment_runs_there(python, saved):
    example = ROOT / "examples" / "deploy_without_torch.py"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, example, "small.qvm"], cwd=saved, env=clean, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stdout
    assert "(1, 10)" in done.stdout


@pytest.mark.parametrize("program", ["quantvm.compile('model.pt')", "quantvm.evaluate()", "quantvm.quantize(None, [])"])
def test_what_needs_more_says_so(python, saved, program):
    done = call(python, f"import quantvm; {program}", saved)
    message = done.stderr.strip().splitlines()[-1]
    for fact in (
        "quantvm.errors.MissingPackageError: ",
        "torch is not installed",
        "quantvm.load",
        "pip install quantvm",
    ):
        assert fact in message


def test_the_command_says_so_without_a_stack(python, saved):
    done = call(python, "import runpy; runpy.run_module('quantvm', run_name='__main__')", saved)
    assert done.returncode == 2
    assert re.match(r"quantvm: .*typer is not installed", done.stderr)
    assert len(done.stderr.splitlines()) == 1
