"""TVM's first error, raised before torch is imported."""

from quantvm import tvm_start


def test_tvm_raises_an_error_and_goes_on():
    assert tvm_start.raise_first_error()
    assert tvm_start.raise_first_error()


def test_without_tvm_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not tvm_start.raise_first_error()
    monkeypatch.undo()
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert not tvm_start.raise_first_error()
