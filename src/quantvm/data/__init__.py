"""Labelled images in: named sets and folders, the class index, preprocessing, batches.

``load_dataset`` and ``load_calibration`` turn a user's request into checked images; ``iterate_batches`` turns these
into tensors. ``sets`` knows where files come from, ``layouts`` how folders are organized.
"""

from quantvm.data.batches import Batch, iterate_batches, iterate_inputs, iterate_parts
from quantvm.data.classes import class_names, imagenet_classes, index_of_wnid
from quantvm.data.dataset import BadImage, CalibrationSet, Dataset, Sample
from quantvm.data.loading import find_data, has_imagenet_labels, load_calibration, load_dataset
from quantvm.data.prepared import PreparedImages
from quantvm.data.preprocess import Preprocessing, preprocess
from quantvm.data.sets import DATASETS, NamedSet, fetch_data
from quantvm.data.sources import Source, open_source

__all__ = [
    "DATASETS",
    "BadImage",
    "Batch",
    "CalibrationSet",
    "Dataset",
    "NamedSet",
    "PreparedImages",
    "Preprocessing",
    "Sample",
    "Source",
    "class_names",
    "fetch_data",
    "find_data",
    "has_imagenet_labels",
    "imagenet_classes",
    "index_of_wnid",
    "iterate_batches",
    "iterate_inputs",
    "iterate_parts",
    "load_calibration",
    "load_dataset",
    "open_source",
    "preprocess",
]
