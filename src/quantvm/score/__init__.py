"""Figures from outputs: accuracy, parity with the reference, agreement between reports."""
