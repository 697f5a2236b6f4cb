"""Convolutions and matrix products: products of bytes, the loops around them, and what is done to each sum."""
