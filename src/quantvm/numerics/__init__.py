"""The exact arithmetic of every reference, in NumPy: PyTorch's engines, numerics=qdq, numerics=integer, TFLite.

Imports neither torch nor tvm. Each formula is stated here once: the lowering chooses one, kernels emit it, and the
rules of `quantvm diff` are variants of it.
"""
