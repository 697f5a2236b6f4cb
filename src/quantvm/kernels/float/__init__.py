"""Kernels of operators in float, and float programs inside of quantized ones."""
