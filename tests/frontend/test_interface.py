"""Programs as people write them: dicts in and out, arguments by name, nested outputs, batches of their own."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import quantvm
from quantvm.errors import ConfigError, ModelImportError
from quantvm.torch_compat import quiet
from tests.frontend import pt2e
from tests.quantized_modules import linear

Pair = namedtuple("Pair", "first second")


def rows(n: int, c: int = 16) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(n))


class Model(nn.Module):
    """Quantizes rows of 16 numbers, and returns what `function` makes of it and its arguments."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.quantize = torch.ao.nn.quantized.Quantize(0.0417, 100, torch.quint8)
        self.linear, self.function = linear(16, 8), function
        self.eval()

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.quantize(x)).dequantize()

    def forward(self, image: Any, mask: Any = None, flag: bool = True) -> Any:
        return self.function(self, image, mask)


def compiled(function: Any, examples: Any, **options: Any) -> tuple[Any, nn.Module]:
    model = Model(function)
    return quantvm.compile(model, examples, engine="fbgemm", threads=1, cache=False, **options), model


def assert_same(got: Any, want: Any) -> None:
    """Asserts equal structure, and equal bits."""
    if isinstance(want, torch.Tensor):
        assert torch.equal(got, want)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key, value in want.items():
            assert_same(got[key], value)
    elif isinstance(want, (list, tuple)):
        assert type(got).__name__ == type(want).__name__
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
    else:
        assert got == want


def everything(model: Model, x: torch.Tensor, _: Any) -> dict[str, Any]:
    y = model.rows(x)
    quantized = model.linear(model.quantize(x))
    return {
        "out": y, "aux": Pair(y.mean(0), [None, 3, (x, x, torch.ones(2))]), 1: quantized.mean().dequantize(),
        "last": quantized[:, 0].dequantize(), "flat": y.reshape(-1),
    }  # fmt: skip


def test_nested_outputs_come_back_as_the_model_nests_them(tmp_path):
    artifact, model = compiled(everything, rows(2))
    names = ["out", "aux.first", "aux.second.2.0", "aux.second.2.1", "aux.second.2.2", "1", "last", "flat"]
    assert [spec.name for spec in artifact.signature.outputs] == names
    shapes = [spec.shape_text for spec in artifact.signature.outputs]
    assert shapes == ["(n, 8)", "(8)", "(n, 16)", "(n, 16)", "(2)", "()", "(n)", "(n*8)"]
    loaded = quantvm.load(artifact.save(tmp_path / "nested.qvm"))
    assert loaded.signature == artifact.signature
    for n in (1, 2, 3, 5):
        want = model(rows(n))
        want["aux"] = Pair(torch.zeros(8), want["aux"].second)  # of floats, summed in another order
        for runner in (artifact, loaded):
            got = runner(image=rows(n))
            np.testing.assert_allclose(got["aux"].first, model(rows(n))["aux"].first, rtol=1e-5, atol=1e-5)
            assert_same({**got, "aux": Pair(torch.zeros(8), got["aux"].second)}, want)


def test_inputs_by_position_by_name_and_in_dicts():
    examples = {"image": {"a": rows(2), "b": [rows(2)]}, "mask": rows(2, 8)}
    artifact, model = compiled(lambda m, x, mask: [m.rows(x["a"]) * mask, m.rows(x["b"][0])], examples)
    assert [spec.name for spec in artifact.signature.inputs] == ["a", "b", "mask"]
    a, b, mask = rows(3), rows(3) + 1, rows(3, 8)
    want = model({"a": a, "b": [b]}, mask)
    assert artifact.verification.verdict == "exact"
    for args, kwargs in [
        ((a, b, mask), {}), (({"a": a, "b": [b]}, mask), {}), ((), {"mask": mask, "image": {"b": [b], "a": a}}),
        (({"mask": mask, "b": b, "a": a},), {}), ((a,), {"mask": mask, "b": b}),
    ]:  # fmt: skip
        assert_same(artifact(*args, **kwargs), want)
    assert isinstance(artifact(a.numpy(), b.numpy(), mask.numpy())[0], np.ndarray)
    for wrong in ({"mask": mask, "image": a, "c": b}, {"a": a}):
        with pytest.raises(ConfigError, match="inputs: a, b, mask"):
            artifact(**wrong)


def test_batches_of_their_own_and_numbers_without_dimensions():
    artifact, model = compiled(
        lambda m, x, y: (m.rows(x) * y["scale"], m.rows(y["other"]), m.rows(x) + y["row"]),
        (rows(2), {"other": rows(4), "scale": torch.tensor(2.0), "row": rows(1, 8)}),
    )
    assert [s.shape_text for s in artifact.signature.inputs] == ["(n, 16)", "(n_1, 16)", "()", "(1, 8)"]
    for n, k in [(1, 3), (3, 1), (5, 5)]:
        y = {"other": rows(k), "scale": torch.tensor(0.3), "row": rows(1, 8)}
        assert_same(artifact(rows(n), y), model(rows(n), y))


def test_inputs_of_one_batch_have_equal_sizes():
    artifact, _ = compiled(lambda m, x, y: m.rows(x) + m.rows(y), (rows(2), rows(2)))
    with pytest.raises(ConfigError, match="batches of 2 and 3 images, expected equal ones"):
        artifact(rows(2), rows(3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x, _: {"a": None, "b": 3}, "the model returns no tensor"),
        (lambda m, x, _: {"a": m.rows(x), "b": {1, 2}}, r"\['b'\] is a set, expected a tensor"),
        (lambda m, x, _: {"a": m.rows(x), "n": x.shape[0]}, "batch='static'"),
    ],
)
def test_outputs_that_cannot_be_compiled_are_named(function, message):
    with pytest.raises(ModelImportError, match=message):
        compiled(function, rows(2))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = torch.ao.nn.quantized.Quantize(0.0417, 100, torch.quint8)
        self.linear = linear(16, 8)
        self.eval()

    def forward(self, batch: dict[str, torch.Tensor], flag: bool = True):
        y = self.linear(self.quantize(batch["image"])).dequantize()
        if flag and "mask" in batch:
            y = y * batch["mask"]
        return {"y": y, "image": batch["image"]}


def test_dicts_of_torchscript(tmp_path):
    scripted = torch.jit.script(Scripted())
    artifact = quantvm.compile(
        scripted, [{"image": rows(2), "mask": rows(2, 8)}], engine="fbgemm", threads=1, cache=False
    )
    x = {"image": rows(3), "mask": rows(3, 8)}
    assert_same(artifact(x), scripted(x))
    with quiet():
        model = Model(lambda m, x, _: {"out": m.rows(x), "aux": m.rows(x) + 1})
        traced = torch.jit.trace(model, (rows(2),), strict=False, check_trace=False)
    traced.save(str(tmp_path / "traced.pt"))
    artifact = quantvm.compile(tmp_path / "traced.pt", rows(2), engine="fbgemm", threads=1, cache=False)
    assert_same(artifact(image=rows(3)), traced(rows(3)))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: dict[str, torch.Tensor], *, mask: torch.Tensor, sequence: torch.Tensor) -> dict[str, Any]:
        y = self.first(x["ids"])
        return {"y": (y, None, 3), "z": y * mask, "rows": self.second(torch.relu(self.first(sequence)))}


def test_pytrees_and_dynamic_sizes_of_exported_programs():
    torch.manual_seed(0)
    model, n, t = Keywords().eval(), torch.export.Dim("n"), torch.export.Dim("t")
    args, kwargs = ({"ids": rows(2)},), {"mask": rows(2, 8), "sequence": torch.randn(3, 5, 16)}
    shapes = {"x": {"ids": {0: n}}, "mask": {0: n}, "sequence": {1: t}}
    program = pt2e.quantize_call(model, args, kwargs, shapes)
    artifact = quantvm.compile(program, threads=1, cache=False)
    assert [spec.name for spec in artifact.signature.inputs] == ["ids", "mask", "sequence"]
    assert [spec.shape_text for spec in artifact.signature.inputs] == ["(n, 16)", "(n, 8)", "(3, n_1, 16)"]
    assert artifact.report.int8_mac_share == 1.0
    assert artifact.verification.verdict == "exact"
    for size, length in [(1, 2), (5, 7)]:
        x, mask, sequence = {"ids": rows(size)}, rows(size, 8), torch.randn(3, length, 16)
        want = program.module()(x, mask=mask, sequence=sequence)
        assert_same(artifact(x, mask=mask, sequence=sequence), want)
        assert_same(artifact({"ids": x["ids"], "mask": mask, "sequence": sequence}), want)
