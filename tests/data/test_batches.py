import threading

import numpy as np
import pytest

from quantvm.data import ahead, batches, iterate_batches, iterate_inputs
from quantvm.data.dataset import Sample
from quantvm.data.preprocess import Preprocessing, preprocess
from quantvm.errors import ConfigError, DataError

from .conftest import write_image

SMALL = Preprocessing(10, 8)


@pytest.fixture
def samples(tmp_path):
    paths = [write_image(tmp_path / f"{number}.png", seed=number) for number in range(7)]
    return [Sample(path.name, path, number) for number, path in enumerate(paths)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("workers", [1, 4])
def test_every_sample_once_in_order(samples, batch_size, workers):
    found = list(iterate_batches(samples, SMALL, batch_size, workers=workers))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert 0 < len(found[-1]) <= batch_size
    assert [name for batch in found for name in batch.ids] == [sample.id for sample in samples]
    assert np.concatenate([batch.labels for batch in found]).tolist() == list(range(7))
    expected = np.stack([preprocess(sample.source, SMALL) for sample in samples])
    np.testing.assert_array_equal(np.concatenate([batch.x_f32 for batch in found]), expected)


def test_the_arrays_are_as_promised(samples):
    batch = next(iterate_batches(iter(samples), SMALL, 4))
    assert batch.x_f32.shape == (4, 3, 8, 8)
    assert batch.x_f32.dtype == np.float32
    assert batch.x_f32.flags.c_contiguous
    assert batch.labels.dtype == np.int64


def test_no_samples_no_batches():
    assert list(iterate_batches([], SMALL, 4)) == []


def test_inputs_alone(samples):
    found = list(iterate_inputs([sample.source for sample in samples], SMALL, 5))
    assert [len(x_f32) for x_f32 in found] == [5, 2]


def test_a_batch_of_nothing_is_refused(samples):
    with pytest.raises(ConfigError, match="batch size: got 0"):
        next(iterate_batches(samples, SMALL, 0))


def test_a_file_that_vanished_is_named(samples):
    samples[3].source.unlink()
    found = iterate_batches(samples, SMALL, 2)
    next(found)
    with pytest.raises(DataError, match=r"3\.png: no such file"):
        next(found)


def test_only_a_few_batches_are_decoded_ahead(samples, monkeypatch):
    decoded = []

    def counting(path, *others):
        decoded.append(path)
        return preprocess(path, *others)

    monkeypatch.setattr(batches, "preprocess", counting)
    found = iterate_batches(samples, SMALL, 1, workers=1)
    next(found)
    found.close()
    assert len(decoded) <= 4


def test_leaving_early_ends_the_threads(samples):
    before = threading.active_count()
    found = iterate_batches(samples, SMALL, 2)
    next(found)
    found.close()
    assert threading.active_count() == before


def test_workers_are_as_many_as_cores_but_few():
    assert 1 <= ahead.default_workers() <= 16
