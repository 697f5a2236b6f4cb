"""Every operator of aten that programs may hold, with all its options."""

from __future__ import annotations

from . import aten_elementwise_cases, aten_layer_cases, aten_tensor_cases
from .aten_inputs import Case

CASES: dict[str, list[Case]] = {**aten_elementwise_cases.CASES, **aten_layer_cases.CASES, **aten_tensor_cases.CASES}
