import numpy as np
import pytest

from quantvm.score.accuracy import AccuracyCount, top_k


def test_top_k_is_best_first():
    scores = np.array([[0.1, 3.0, 2.0, 5.0, 4.0, -1.0]], dtype=np.float32)
    assert top_k(scores, 3).tolist() == [[3, 4, 1]]


def test_equal_scores_come_in_the_order_of_their_index():
    scores = np.array([[1, 2, 2, 1, 2, 0], [7, 7, 7, 7, 7, 7]], dtype=np.float32)
    assert top_k(scores).tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]


def test_nan_ranks_last_and_infinities_are_ordered():
    scores = np.array([[np.nan, -np.inf, 0.0, np.inf]], dtype=np.float32)
    assert top_k(scores, 4).tolist() == [[3, 2, 1, 0]]


def test_fewer_classes_than_k():
    assert top_k(np.array([[1.0, 2.0]], dtype=np.float32)).tolist() == [[1, 0]]


def test_accuracy_is_counted_over_batches_of_different_size():
    count = AccuracyCount()
    count.add(np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]), np.array([1, 5]))
    count.add(np.array([[0, 1, 2, 3, 4]]), np.array([77]))
    assert count.row() == {"top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}


def test_accuracy_of_no_images_is_zero():
    assert AccuracyCount().row() == {"top1": 0.0, "top5": 0.0}
