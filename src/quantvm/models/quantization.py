"""How PyTorch quantizes a model: one choice of scheme, engine and flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantvm.choices import ENGINES, FLOWS, SCHEMES
from quantvm.errors import ConfigError
from quantvm.torch_compat import quiet


@dataclass(frozen=True)
class Quantization:
    """How PyTorch quantizes a model.

    Attributes:
        scheme: "per-channel" (the engine's own choice of observers) or "per-tensor" (the original benchmark's).
        engine: the engine that the weights are packed for; "pt2e" in what the flow pt2e made, which is for none.
        flow: "eager", "fx" or "pt2e".
    """

    scheme: str = "per-channel"
    engine: str = "fbgemm"
    flow: str = "eager"

    def check_flow(self) -> None:
        """Raises ConfigError if the flow is unknown."""
        if self.flow not in FLOWS:
            raise ConfigError(f"unknown quantization flow {self.flow!r}; expected one of {', '.join(FLOWS)}")

    def qconfig(self) -> Any:
        """Returns torch's QConfig for the scheme and the engine.

        - per-channel: the engine's default (histogram observers; fbgemm and x86 use 7 of the 8 bits of an activation,
          because their kernels without VNNI would saturate otherwise). qnnpack's default has one scale for all weights
          of a layer; here its weights get a scale per channel too, and its activations stay as they are.
        - per-tensor: as in the original benchmark: moving averages of minimum and maximum over all 8 bits, and torch's
          default weight observer.

        Raises:
            ConfigError: an unknown scheme or engine.
        """
        if self.scheme not in SCHEMES:
            raise ConfigError(f"unknown quantization scheme {self.scheme!r}; expected one of {', '.join(SCHEMES)}")
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown quantized engine {self.engine!r}; expected one of {', '.join(ENGINES)}")
        import torch.ao.quantization as tq

        with quiet():
            if self.scheme == "per-tensor":
                activation = tq.MovingAverageMinMaxObserver.with_args(reduce_range=False)
                return tq.QConfig(activation=activation, weight=tq.default_weight_observer)
            default = tq.get_default_qconfig(self.engine)
            return tq.QConfig(activation=default.activation, weight=tq.default_per_channel_weight_observer)

    def mark(self, model: Any, n_calibration: int) -> None:
        """Notes on a quantized model how it was made, and on how many images it was calibrated."""
        model.quantvm_engine, model.quantvm_scheme = self.engine, self.scheme
        model.quantvm_n_calibration = n_calibration
