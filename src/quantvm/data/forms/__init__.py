"""The forms in which ImageNet lies on disks, in the order in which they are tried: what is most certain comes first.

To add a form: write a reader (see `Form.read`), give it a row here, and its name to `choices.DATA_FORMS`. Files,
archives and tables are listed by ``inventory.py`` for all of them, so that no form needs to know where the bytes are.
"""

from __future__ import annotations

from types import MappingProxyType

from quantvm.data.forms.folders import index_folders, name_folders, wnid_folders, wnid_names
from quantvm.data.forms.lists import list_form, read_named_list, validation_numbers
from quantvm.data.forms.reading import Form, Labelled, Material, Reading
from quantvm.data.forms.said import said_by

_FORMS = (
    Form(
        "parquet",
        "Parquet files with a column of images, as Hugging Face keeps them; also in the hub's cache",
        "the column label, by the names of the classes if the file has them",
        said_by(("parquet",), "the table's column of labels, which are class indices"),
    ),
    Form(
        "arrow",
        "Arrow files, as the library datasets keeps them",
        "the column label",
        said_by(("arrow",), "the table's column of labels, which are class indices"),
    ),
    Form(
        "tfrecord",
        "TFRecord files of TensorFlow Datasets or TF-slim",
        "TFDS: the label; TF-slim: the wnid, or the label - 1",
        said_by(("tfrecord",), "the record's label; of TF-slim's, which count from 1, the wnid"),
    ),
    Form(
        "webdataset",
        "tar shards, or folders, in which each image has a .cls or .json beside it",
        "the number or wnid in .cls, or the field label of .json",
        said_by(("shard", "file"), "the number in the .cls or .json of the same key, which is the class index"),
    ),
    Form(
        "wnid-folders",
        "folders or archives that begin with a wnid: n01440764, n01440764_tench, n01440764.tar",
        "the wnid",
        wnid_folders,
    ),
    Form(
        "wnid-names",
        "images whose names begin or end with a wnid: n01440764_tench.JPEG, ..._n01440764.JPEG",
        "the wnid",
        wnid_names,
    ),
    Form("index-folders", "folders 0 to 999, as in ImageNetV2; zeros may stand before", "the number", index_folders),
    Form("name-folders", "folders that are named like classes: tench, great_white_shark", "the name, if only one class "
         "has it", name_folders),
    Form(
        "kaggle",
        "LOC_val_solution.csv beside flat images, in a folder or in Kaggle's zip file",
        "the first wnid of PredictionString",
        list_form("kaggle"),
    ),
    Form(
        "label-list",
        "a text or CSV file of names and classes beside flat images: val.txt, val_map.txt, val_list.txt, labels.csv",
        "the class index or the wnid",
        list_form("named"),
    ),
    Form(
        "devkit",
        "the devkit beside flat images or ImageNet's own archives, as a folder or .tar.gz",
        "the ground truth's ILSVRC2012_ID of the image's number",
        list_form("ids"),
    ),
    Form(
        "synset-list",
        "a file of one wnid a line beside flat images: imagenet_2012_validation_synset_labels.txt",
        "the line of the image's number",
        list_form("synsets"),
    ),
    Form(
        "validation-numbers",
        "validation images (ILSVRC2012_val_00000001.JPEG) without any list",
        "the number, by ImageNet's own list of 50,000, which is part of quantvm",
        validation_numbers,
    ),
)  # fmt: skip

FORMS = MappingProxyType({form.name: form for form in _FORMS})

__all__ = ["FORMS", "Form", "Labelled", "Material", "Reading", "read_named_list"]
