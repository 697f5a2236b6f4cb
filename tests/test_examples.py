"""Every example runs as its first lines say, and says what it is there to show."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quantvm
from quantvm.torch_compat import quantization_engine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

SAID = {
    "own_cnn_pt2e.py": ("100 % of the multiply-adds in int8, qdq", "same best class: True"),
    "torchvision_qat.py": ("100 % of the multiply-adds in int8, engine fbgemm", "same bits: True"),
    "onnx_file.py": ("100 % of the multiply-adds in int8, qdq", "same best class: True"),
    "custom_op.py": ("left in float: ", "same bits: True"),
}
NIGHTLY = {"torchvision_qat.py"}
"""It takes half a minute; quantization-aware training is in tests/frontend, too."""
ELSEWHERE = {"deploy_without_torch.py": "tests/runtime/test_without_torch.py"}
"""An example that runs in an environment of its own, and its test."""


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAID.keys() | ELSEWHERE.keys()
    for example, test in ELSEWHERE.items():
        assert example in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("example", sorted(SAID.keys() - NIGHTLY))
def test_example(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with quantization_engine(torch.backends.quantized.engine):
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    said = capsys.readouterr().out
    for words in SAID[example]:
        assert words in said


@pytest.mark.nightly
@pytest.mark.parametrize("example", sorted(SAID))
def test_example_as_a_program(example, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(quantvm.__file__).parent.parent), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", EXAMPLES / example]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for words in SAID[example]:
        assert words in done.stdout


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_the_readme_names_every_example(example):
    assert f"examples/{example}" in (ROOT / "README.md").read_text(encoding="utf-8")
