"""Operators that stay in float, and their kernels."""
