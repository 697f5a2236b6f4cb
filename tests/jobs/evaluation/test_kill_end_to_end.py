"""`quantvm run` in a process that is killed, with a real network: quantized, compiled and kept in the run folder."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from quantvm.cli import app
from tests.workload.own_models import write_factories, write_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals")
NAME = "factories_to_kill"
OPTIONS = (
    "--data", "images", "--class-map", "sorted", "--model", f"{NAME}:floating", "--input-shape", "1,3,32,32",
    "--threads", "1", "--batch-size", "2", "--shard-size", "2", "--check-parity", "exact",
)  # fmt: skip
FINDINGS = ("networks", "units", "units/*/00001.parquet", "units/*/00005.parquet")
"""What is there when the process is killed soon after."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and images, and an undisturbed run of them."""
    folder = tmp_path_factory.mktemp("kill")
    write_factories(folder, NAME)
    write_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        result = CliRunner().invoke(app, ["run", *OPTIONS, "--out", "undisturbed"])
        assert result.exit_code == 0, result.output
        yield folder
    sys.modules.pop(NAME, None)


def killed(folder, finding, wait_s, number, *arguments):
    """Runs a command until `finding` is in its run folder, and ends it by a signal; returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-m", "quantvm", "run", *arguments], cwd=folder.parent, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ends_s = time.monotonic() + 120
    while process.poll() is None and not list(folder.glob(finding)) and time.monotonic() < ends_s:
        time.sleep(0.005)
    time.sleep(wait_s)
    process.send_signal(number)
    return process.communicate()[1], process.returncode


def test_a_killed_command_goes_on_with_the_very_same_network(place):
    folder = place / "killed"
    killed(folder, "units/*/00001.parquet", 0, signal.SIGKILL, *OPTIONS, "--out", str(folder))
    (network,) = (folder / "networks").iterdir()
    before = {path.name: path.read_bytes() for path in network.iterdir()}
    assert {name.partition(".")[0] for name in before} == {"network", "reference", "tvm"}
    result = CliRunner().invoke(app, ["run", "--resume", str(folder)])
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in network.iterdir()} == before
    found, expected = (
        json.loads((path / "run.json").read_text())["models"] for path in (folder, place / "undisturbed")
    )
    for row in (*found, *expected):  # of two compilations
        row |= dict.fromkeys(("import_s", "compile_s", "load_s", "cached", "duration_s"))
    assert found == expected
    assert pq.read_table(folder / "samples.parquet").equals(pq.read_table(place / "undisturbed" / "samples.parquet"))


def test_a_network_that_was_changed_is_refused(place):
    folder = place / "undisturbed"
    (code,) = folder.glob("networks/*/*.qvm")
    content = code.read_bytes()
    try:
        code.write_bytes(content[:-1] + b"?")
        result = CliRunner().invoke(app, ["run", "--resume", str(folder)])
    finally:
        code.write_bytes(content)
    assert result.exit_code == 2
    assert f"{code.name} is missing or damaged" in result.stderr


def test_a_model_that_was_changed_is_refused_and_another_numerics_is_compiled_from_what_is_kept(place, monkeypatch):
    folder = shutil.copytree(place / "undisturbed", place / "copy")
    before = {path.name: path.read_bytes() for path in folder.glob("networks/*/reference.pt")}
    result = CliRunner().invoke(app, ["run", "--resume", str(folder), "--numerics", "torch,integer", "--fp32", "none"])
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "run.json").read_text())["models"]
    assert [(row["numerics"], row["n_images"], row["status"]) for row in rows] == [
        ("torch", 12, "passed"), ("integer", 12, "passed"),
    ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.glob("networks/*/reference.pt")} == before
    changed = sys.modules[NAME].floating

    def another():
        module = changed()
        next(iter(module.parameters())).data += 1
        return module

    monkeypatch.setattr(sys.modules[NAME], "floating", another)
    result = CliRunner().invoke(app, ["run", "--resume", str(folder)])
    assert result.exit_code == 2
    assert f"the model {NAME}:floating has changed" in result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_commands_that_end_at_random_moments(place, seed):
    chosen, folder = random.Random(seed), place / f"random{seed}"
    for arguments in ((*OPTIONS, "--out", str(folder)), ("--resume", str(folder))):
        number = chosen.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        told, code = killed(folder, chosen.choice(FINDINGS), chosen.uniform(0, 0.3), number, *arguments)
        assert code in (-number, 128 + number, 0), told
        if code == 128 + number and (folder / "manifest.json").exists():
            assert f"quantvm run --resume {folder}" in told
    result = CliRunner().invoke(app, ["run", *OPTIONS, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert pq.read_table(folder / "samples.parquet").equals(pq.read_table(place / "undisturbed" / "samples.parquet"))
    assert not list(folder.rglob("*.tmp*"))
