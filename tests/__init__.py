"""Tests of quantvm. As its commands do, they make TVM's import cheaper before torch is imported."""

from quantvm.tvm_start import raise_first_error

raise_first_error()
