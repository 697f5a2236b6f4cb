"""What holds for every test."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_compiled_models_are_kept():
    """Tests neither find what an earlier run compiled nor fill the user's cache; those of the cache make one."""
    before = os.environ.get("QUANTVM_CACHE_BYTES")
    os.environ["QUANTVM_CACHE_BYTES"] = "0"
    yield
    if before is None:
        del os.environ["QUANTVM_CACHE_BYTES"]
    else:
        os.environ["QUANTVM_CACHE_BYTES"] = before
