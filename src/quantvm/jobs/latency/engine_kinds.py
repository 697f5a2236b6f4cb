"""Which engines can be measured, and what each needs. Importing this module imports none of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineKind:
    """One engine that can be measured.

    Attributes:
        home: where its class is.
        flows: the flows of PyTorch's quantization whose models it runs.
        modules: the modules that it needs besides quantvm's own dependencies.
    """

    home: str
    flows: tuple[str, ...] = ("eager", "fx", "pt2e")
    modules: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """Returns the modules that are not installed."""
        return tuple(name for name in self.modules if importlib.util.find_spec(name) is None)


_OWN = "quantvm.jobs.latency.engines"
_PEERS = "quantvm.jobs.latency.peer_engines"
_EXPORTED = "quantvm.jobs.latency.exported_engines"
_PACKED = ("eager", "fx")
ENGINES: dict[str, EngineKind] = {
    "tvm": EngineKind(f"{_OWN}:TvmEngine"),
    "torch_fbgemm": EngineKind(f"{_OWN}:TorchEngine", _PACKED),
    "torch_x86": EngineKind(f"{_OWN}:TorchEngine", _PACKED),
    "torch_onednn": EngineKind(f"{_OWN}:TorchEngine", _PACKED),
    "torch_pt2e": EngineKind(f"{_EXPORTED}:ExportedEngine", ("pt2e",), ("torchao",)),
    "torch_inductor": EngineKind(f"{_EXPORTED}:InductorEngine", ("pt2e",), ("torchao",)),
    "onnxruntime": EngineKind(f"{_PEERS}:OnnxRuntimeEngine", modules=("onnx", "onnxruntime")),
    "openvino": EngineKind(f"{_PEERS}:OpenVinoEngine", modules=("onnx", "openvino", "nncf")),
}
"""The engines by name, in the order of the reports."""
