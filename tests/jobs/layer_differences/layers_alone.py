"""Checks of the files that `quantvm diff --save-repro` writes for layers of exported programs and ONNX files."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantvm.frontend import LayeredProgram
from quantvm.jobs.layer_differences.repro_programs import ProgramCase, program_text
from quantvm.runtime.target import Machine


def executed(text: str) -> dict[str, Any]:
    """Returns the names that a file defines."""
    names: dict[str, Any] = {"__name__": "repro"}
    exec(compile(text, "<repro>", "exec"), names)  # the text is ours
    return names


def add_to_zero_points(monkeypatch) -> None:
    """Puts a bug in: convolutions of QDQ programs take another zero point than their input's."""
    from quantvm.lowering.qdq import legalize as qdq_legalize

    original = qdq_legalize.conv2d.conv2d

    def with_another_zero_point(shape, weight, zero_point, *arguments, **options):
        return original(shape, weight, zero_point + 3, *arguments, **options)

    monkeypatch.setattr(qdq_legalize.conv2d, "conv2d", with_another_zero_point)


def check_layers_alone(program: LayeredProgram) -> None:
    """Every layer's file gives on the framework's side what the framework gave in the network."""
    side, inputs = program.source.side, program.example_inputs
    captured = [tensor.contiguous().numpy() for tensor in program.source.layers(program.layers, inputs)]
    for index, layer in enumerate(program.layers):
        alone = program.source.alone(program.layers, index, inputs)
        numbers = [number if kind == "layer" else None for kind, number in alone.reads]
        case = ProgramCase(
            alone.program,
            [inputs[0].numpy() if i is None else captured[i] for i in numbers],
            [None if i is None else program.layers[i].q for i in numbers],
            [False] * len(numbers), layer.q, layer.name, "small", side, "tvm", Machine("native", 1),
        )  # fmt: skip
        names = executed(program_text(case))
        expected = names["expected"]()
        assert np.count_nonzero(expected != captured[index]) <= captured[index].size // 1000, layer.name
        assert np.abs(names["found"]() - expected).max() <= 1, layer.name
