"""Int8 kernels in TIR, one op family per file; `reference.py` holds their NumPy oracles.

Every public kernel function takes shapes, quantization parameters and a formula, and returns a `Kernel`: one PrimFunc
in destination-passing style, and the packed constants that are its arguments between inputs and output. Kernels know
neither Relax graphs (`lowering` does) nor torch.

Activations are NHWC ("channels last") unless a docstring says otherwise; the batch is symbolic.
"""

from .builder import Kernel

__all__ = ["Kernel"]
