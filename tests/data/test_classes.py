from quantvm.data import class_names, imagenet_classes, index_of_wnid


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
