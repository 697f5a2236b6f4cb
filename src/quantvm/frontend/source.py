"""A quantized program, as its user gives it to an importer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """What is imported.

    Attributes:
        model: a module, a TorchScript or exported program, an ONNX model, or the path of a file.
        example_inputs: one tensor, a sequence of arguments, or a dict by name; None if the program says its inputs.
        engine: PyTorch engine that a module or TorchScript was quantized for; None if that says it, see `from_torch`.
        batch: dynamic or static, see `import_model`.
    """

    model: Any
    example_inputs: Any = None
    engine: str | None = None
    batch: str = "dynamic"

    @property
    def arguments(self) -> list[Any] | None:
        """The example as the arguments of a call: a single tensor or dict is the only argument."""
        if self.example_inputs is None:
            return None
        return list(self.example_inputs) if isinstance(self.example_inputs, (list, tuple)) else [self.example_inputs]
