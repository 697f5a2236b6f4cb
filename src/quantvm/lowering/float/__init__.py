"""Operators that stay in float: which they are, and their kernels."""
