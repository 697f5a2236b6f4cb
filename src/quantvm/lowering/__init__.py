"""Relax in QDQ form -> Relax calling int8 PrimFuncs. `pipeline.lower` is the entry and states the order of passes.

1. `channel_affine`: a normalization written channel by channel becomes one operator for all channels.
2. `fuse_qdq`: dequantize -> float ops -> quantize islands become composite functions.
3. `legalize`: each composite becomes a call of one int8 kernel; memory layouts are chosen here.
4. `float_ops`: operators that no pattern matched stay float; TVM legalizes them, and products are rounded separately.
"""

from .calls import KernelCall
from .pipeline import LoweringOptions, LoweringReport, lower

__all__ = ["KernelCall", "LoweringOptions", "LoweringReport", "lower"]
