"""Relax in QDQ form -> Relax calling int8 PrimFuncs. `pipeline.lower` is the entry and states the order of passes.

1. `fuse_qdq`: dequantize -> float ops -> quantize islands become composite functions.
2. `legalize`: each composite becomes a call of one int8 kernel; memory layouts are chosen here.
3. `float_ops`: what no pattern took stays float, is legalized by TVM, and its products keep their own rounding.
"""

from .calls import KernelCall
from .pipeline import LoweringOptions, LoweringReport, lower

__all__ = ["KernelCall", "LoweringOptions", "LoweringReport", "lower"]
