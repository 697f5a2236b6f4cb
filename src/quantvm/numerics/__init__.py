"""The exact arithmetic of every reference in NumPy: PyTorch's engines, qdq, integers alone, TFLite.

No torch, no tvm. Each formula is stated here once; kernels emit it, the lowering chooses by it, and the rules of
`quantvm diff` parametrise it.
"""
