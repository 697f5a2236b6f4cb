"""Damaged files of every format end in a clear error, or in what the whole file gives: never in a stack, crash or wait.

Each is read in a child process with limits of time and memory. A child reads many files, and is started anew where it
dies. What is read from a file whose checksums were made right again may be another model; elsewhere it may not.
"""

from __future__ import annotations

import collections
import json
import os
import random
import selectors
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from quantvm.kernels.schedule.schedules import MEASURED
from tests.damaged_files import damaged_archive, damaged_bytes, damaged_json, damaged_message
from tests.file_reading import SHAPE

N_TRIES = int(os.environ.get("QUANTVM_FILE_TRIES", "20000"))
SECONDS = 90
MODELS = ("pt", "pt2", "onnx", "tflite", "qvm")
KINDS = (*MODELS, "json", "png", "jpg", "tiff", "webp", "bmp", "gif")
CHECKED = ("pt", "pt2", "qvm")
"""Formats that have checksums of all they hold."""


class Net(nn.Module):
    """A convolution, a residual and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.add = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.quant(x))
        x = self.add.add(x, torch.relu(x))
        return self.dequant(self.fc(x.mean([2, 3])))


def _script() -> Any:
    torch.backends.quantized.engine = "fbgemm"
    net = Net().eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(net, inplace=True)
    net(torch.randn(SHAPE))
    torch.ao.quantization.convert(net, inplace=True)
    return torch.jit.trace(net, torch.randn(SHAPE))


class Decomposed(nn.Module):
    """The same as PT2E writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (8, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8) / 64 + 0.01)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed

        def qdq(y: torch.Tensor, scale: float) -> torch.Tensor:
            y = ops.quantize_per_tensor.default(y, scale, 3, -128, 127, torch.int8)
            return ops.dequantize_per_tensor.default(y, scale, 3, -128, 127, torch.int8)

        weight = ops.dequantize_per_channel.default(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        y = qdq(torch.relu(nn.functional.conv2d(qdq(x, 0.05), weight, self.bias, padding=1)), 0.1)
        return qdq(y.mean([2, 3]), 0.07).flatten(1)


def _onnx() -> bytes:
    from tests.frontend.onnx_graphs import Graph

    chance = np.random.default_rng(0)
    graph = Graph(["n", 3, 8, 8])
    x = graph.qdq("x")
    y = graph.op(
        "Conv", x, graph.weight(chance.integers(-127, 127, (8, 3, 3, 3))), pads=[1, 1, 1, 1], kernel_shape=[3, 3]
    )
    y = graph.qdq(graph.op("Relu", y), 0.1, 0)
    y = graph.qdq(graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.1, 0)
    y = graph.op("Reshape", y, graph.constant([0, -1], np.int64))
    y = graph.op("Gemm", y, graph.weight(chance.integers(-127, 127, (5, 128))), transB=1)
    graph.output(graph.qdq(y, 0.2, 128))
    return graph.model().SerializeToString()


def _tflite() -> bytes:
    import tflite

    from tests.frontend.tflite_file import FileOperator, FileTensor, model_bytes

    chance, kinds = np.random.default_rng(0), tflite.BuiltinOperator
    scales = np.linspace(0.01, 0.02, 8)
    tensors = [
        FileTensor("x", (1, 8, 8, 3), "float32"),
        FileTensor("x_q", (1, 8, 8, 3), scale=0.05, zero_point=3),
        FileTensor("w", (8, 3, 3, 3), scale=scales, value=chance.integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)),
        FileTensor("b", (8,), "int32", scale=scales * 0.05, value=chance.integers(-99, 99, 8).astype(np.int32)),
        FileTensor("y_q", (1, 8, 8, 8), scale=0.1, zero_point=-5),
        FileTensor("y", (1, 8, 8, 8), "float32"),
    ]
    options = {"Padding": 0, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    operators = [
        FileOperator(kinds.QUANTIZE, ["x"], ["x_q"]),
        FileOperator(kinds.CONV_2D, ["x_q", "w", "b"], ["y_q"], tflite.BuiltinOptions.Conv2DOptions, options),
        FileOperator(kinds.DEQUANTIZE, ["y_q"], ["y"]),
    ]
    return model_bytes(tensors, operators, ["x"], ["y"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns a small file of each format."""
    import quantvm.frontend.exported.importer
    from quantvm.compiler import compile as build

    torch.manual_seed(0)
    quantvm.frontend.exported.importer.register_operators()
    folder = tmp_path_factory.mktemp("whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(_script(), str(folder / "a.pt"))
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.export.export(Decomposed().eval(), (torch.randn(SHAPE),), dynamic_shapes=shapes)
        torch.export.save(program, folder / "a.pt2")
    (folder / "a.onnx").write_bytes(_onnx())
    (folder / "a.tflite").write_bytes(_tflite())
    build(folder / "a.tflite", target="llvm", threads=1, cache=False).save(folder / "a.qvm")
    records = json.loads(next(MEASURED.glob("*.json")).read_text())
    records["records"] = records["records"][:3]
    (folder / "a.json").write_text(json.dumps(records))
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    for suffix in ("png", "jpg", "tiff", "webp", "bmp", "gif"):
        Image.fromarray(pixels).save(folder / f"a.{suffix}")
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in KINDS}


class Reader:
    """A child process, started when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._process = folder, None
        self.n_started = 0

    def ask(self, kind: str, data: bytes, *, compiles: bool) -> dict[str, str]:
        """Returns the verdict on a file."""
        path = self._folder / f"tried.{kind}"
        path.write_bytes(data)
        process = self._process = self._process or self._started()
        process.stdin.write(json.dumps({"kind": kind, "path": str(path), "compiles": compiles}) + "\n")
        process.stdin.flush()
        answer = self._answer(SECONDS)
        if answer is None:
            return {"verdict": "fault", "told": f"no answer in {SECONDS} s"}
        return answer or {"verdict": "fault", "told": f"the process died with {process.wait()}: {self._said()}"}

    def _started(self) -> subprocess.Popen[str]:
        self.n_started += 1
        self._log = (self._folder / "stderr.txt").open("w")
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.file_reading"], cwd=root, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._answer(300) == {"verdict": "ready"}, self._said()
        return self._process

    def _answer(self, seconds: float) -> dict[str, str] | None:
        """Returns the next answer, an empty one if the process died, None if there is none in time."""
        assert self._process is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.stop()
                return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._process = None
        return json.loads(line) if line else {}

    def _said(self) -> str:
        return (self._folder / "stderr.txt").read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.stop()


def damaged(kind: str, data: bytes, chance: random.Random) -> tuple[bytes, bool]:
    """Returns a damaged file, and whether its checksums were made right again."""
    way = chance.random()
    if way < 0.35:
        return damaged_bytes(data, chance), False
    if kind in CHECKED:
        return damaged_archive(data, chance), True
    if kind == "json":
        return damaged_json(data, chance), False
    if kind == "onnx":
        import onnx

        model = onnx.ModelProto.FromString(data)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            try:
                damaged_message(model, chance)
            except (TypeError, ValueError):  # a value that the field cannot hold
                continue
        return model.SerializeToString(), False
    return damaged_bytes(data, chance), False


def search(
    whole: dict[str, bytes], reader: Reader, n_tries: int, every: int, first: int = 0
) -> collections.Counter[str]:
    """Reads damaged files; returns how many ended how. Every so many are compiled and run, too."""
    counts: collections.Counter[str] = collections.Counter()
    expected = {(kind, False): reader.ask(kind, whole[kind], compiles=False) for kind in KINDS}
    expected |= {(kind, True): reader.ask(kind, whole[kind], compiles=True) for kind in CHECKED}
    assert {answer["verdict"] for answer in expected.values()} == {"read"}, expected
    weights = [12 if kind in MODELS else 4 if kind == "json" else 2 for kind in KINDS]
    faults = []
    for seed in range(first, first + n_tries):
        chance = random.Random(seed)
        (kind,) = chance.choices(KINDS, weights)
        data, is_right = damaged(kind, whole[kind], chance)
        compiles = kind in MODELS and seed % every == 0
        answer = reader.ask(kind, data, compiles=compiles)
        found = answer["verdict"]
        if found == "read" and kind in CHECKED and not is_right and data != whole[kind]:
            same = expected.get((kind, compiles))
            if same is not None and same["told"] != answer["told"]:
                found = "fault"
                answer = {"told": "another model was read than the file holds"}
        counts[f"{kind}: {found}"] += 1
        if found == "fault":
            faults.append(
                f"seed {seed}, {kind}{', compiled' if compiles else ''}: {answer['told']}\n{answer.get('stack', '')}"
            )
    assert not faults, f"{len(faults)} of {n_tries}, {dict(counts)}:\n" + "\n".join(faults[:20])
    return counts


def test_damaged_files(whole, reader):
    counts = search(whole, reader, 200, every=100)
    assert reader.n_started == 1
    assert sum(count for name, count in counts.items() if name.endswith("error")) > 100


@pytest.mark.nightly
def test_many_damaged_files(whole, reader):
    for start in range(0, N_TRIES, 500):  # a child that loaded many models has kept some of their memory
        search(whole, reader, min(500, N_TRIES - start), every=25, first=1000 + start)
        reader.stop()
