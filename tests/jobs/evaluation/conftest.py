"""The number of threads is not that of an earlier test, which real engines leave in the environment."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_threads_in_the_environment_of_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TVM_NUM_THREADS", raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_threads_in_the_environment(monkeypatch):
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
