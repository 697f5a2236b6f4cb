"""Convolutions and matrix products: dot products of bytes, the loops around them, and the epilogues."""
