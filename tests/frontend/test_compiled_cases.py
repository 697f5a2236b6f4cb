"""Every converter of exported programs to the end: its case is compiled, and compared with PyTorch's own run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from quantvm.compiler import compile as compile_model
from quantvm.frontend.exported.aten import SHARED
from quantvm.frontend.exported.nodes import op_name
from quantvm.frontend.exported.registry import exported_ops
from tests.quantized_modules import image

from . import aten_cases
from .exported_cases import CASES, FLOAT, Together
from .pt2e import DYNAMIC

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")

ALL = {**CASES, **FLOAT}
BATCHES = (2, 3)


@pytest.fixture(scope="module")
def together() -> Any:
    """The program of all cases."""
    return torch.export.export(Together(list(ALL.values())).eval(), (image(2, 8, 6, 6),), dynamic_shapes=DYNAMIC)


@pytest.fixture(scope="module")
def results(together) -> dict[str, list[tuple[np.ndarray, torch.Tensor]]]:
    """Maps a case to what compiled code returns and what PyTorch does, for each batch; all are compiled together."""
    artifact = compile_model(together, image(2, 8, 6, 6), threads=1, cache=False)
    found: dict[str, list[tuple[np.ndarray, torch.Tensor]]] = {name: [] for name in ALL}
    for batch in BATCHES:
        x = image(batch, 8, 6, 6, seed=batch)
        with torch.no_grad():
            expected = together.module()(x)
        for name, actual, wanted in zip(ALL, artifact(x), expected, strict=True):
            found[name].append((np.asarray(actual), wanted))
    return found


@pytest.mark.parametrize("name", ALL)
def test_compiled_case_is_torchs(name: str, results):
    for actual, expected in results[name]:
        wanted = expected.numpy()
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(actual, wanted, rtol=2e-6, atol=1e-6 * max(1.0, np.abs(wanted).max()))


def test_every_converter_is_in_what_is_compiled(together):
    compiled = {op_name(node) for node in together.graph.nodes if node.op == "call_function"}
    in_test_torchao = {name for name in exported_ops() if name.startswith("torchao::")} | {"aten::_int_mm.default"}
    refused = {"aten::argsort.default"}  # its result may not be read: test_exported_order.py
    open_values = {f"aten::{name}" for name in ("empty.memory_format", "empty_permuted.default", "empty_like.default",
                                                "new_empty.default")}  # fmt: skip
    evaluated = {"aten::item.default", "aten::_local_scalar_dense.default"}  # test_aten.py
    known = compiled | in_test_torchao | refused | open_values | evaluated | set(aten_cases.CASES)
    missing = {*exported_ops(), *SHARED} - known
    assert sorted(missing) == [], "converters without a case that is compiled"
