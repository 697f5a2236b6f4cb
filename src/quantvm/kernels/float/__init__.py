"""Kernels of float operators, and float programs inside of quantized kernels."""
