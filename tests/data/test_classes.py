import numpy as np

from quantvm.data import class_names, imagenet_classes, index_of_wnid
from quantvm.data.classes import index_of_ilsvrc2012_id, indices_of_name, validation_labels


def test_a_thousand_classes_in_order():
    classes = imagenet_classes()
    assert [item.index for item in classes] == list(range(1000))
    assert len(class_names()) == len(index_of_wnid()) == 1000
    assert all(class_names())


def test_the_order_is_that_of_the_wnids():
    assert list(index_of_wnid()) == sorted(index_of_wnid())


def test_well_known_classes():
    known = {0: "tench", 207: "golden_retriever", 281: "tabby", 999: "toilet_tissue"}
    assert {index: class_names()[index] for index in known} == known
    assert index_of_wnid()["n02099601"] == 207


def test_the_devkits_numbering_is_another():
    ids = [item.ilsvrc2012_id for item in imagenet_classes()]
    assert sorted(ids) == list(range(1, 1001))
    assert all(number != index + 1 for index, number in enumerate(ids))
    known = {1: "kit_fox", 449: "tench"}
    assert {number: class_names()[index_of_ilsvrc2012_id()[number]] for number in known} == known


def test_the_classes_of_the_validation_images():
    labels = validation_labels()
    assert labels[:6].tolist() == [65, 970, 230, 809, 516, 57]
    assert [imagenet_classes()[label].ilsvrc2012_id for label in labels[:6]] == [490, 361, 171, 822, 297, 482]
    assert labels[19877 - 1] == 998
    assert labels[-2:].tolist() == [982, 355]
    assert np.bincount(labels).tolist() == [50] * 1000


def test_names_of_two_classes():
    doubled = {name: indices for name, indices in indices_of_name().items() if len(indices) > 1}
    assert doubled["crane"] == (134, 517)
    assert indices_of_name()["greatwhiteshark"] == (2,)
