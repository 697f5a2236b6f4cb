"""Pools, means and interpolation."""
