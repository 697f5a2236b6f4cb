"""Builds small instances of the forms in which ImageNet lies on disks. Validation images are its own, by their numbers.

A picture is (name, bytes, class). All bytes differ, so that a reader cannot mistake one for another.
"""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from quantvm.data.classes import imagenet_classes, validation_labels
from quantvm.data.contents import masked_crc32c

CLASSES = imagenet_classes()
WNIDS = [item.wnid for item in CLASSES]
NAMES = [item.name for item in CLASSES]
IDS = [item.ilsvrc2012_id for item in CLASSES]
NUMBERS = (1, 2, 5, 6, 10, 12, 20, 22)  # with gaps; 20 is the crane that is a machine
LINES = 24  # of the lists that go by line


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def label_of(number):
    return int(validation_labels()[number - 1])


VAL = [(f"ILSVRC2012_val_{n:08d}.JPEG", picture(n), label_of(n)) for n in NUMBERS]
TRAIN = [(f"{WNIDS[i]}_{n}.JPEG", picture(1000 + i), i) for i, n in ((0, 10026), (5, 33), (150, 14822), (970, 7))]
ANY = [(f"shot{i}.png", picture(5000 + i), i) for i in (0, 7, 65, 999)]  # no names of ImageNet's


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def flat(root, folder, pictures=VAL):
    for name, content, _ in pictures:
        put(root, f"{folder}{name}", content)
    return root


def in_folders(root, pictures, name_of):
    for name, content, label in pictures:
        put(root, f"{name_of(label)}/{name}", content)
    return root


def tar_of(members, end=True):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        size = archive.offset
    return file.getvalue() if end else file.getvalue()[:size]


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def class_tars():
    return [(f"{name[:9]}.tar", tar_of([(name, content)])) for name, content, _ in TRAIN]


def shuffled(items, seed=3):
    return random.Random(seed).sample(list(items), len(items))


def devkit(folder="ILSVRC2012_devkit_t12"):
    truth = "".join(f"{IDS[label_of(n)]}\n" for n in range(1, LINES + 1))
    return [
        (f"{folder}/readme.txt", b"This is the documentation of the ILSVRC2012 Development Kit.\n"),
        (f"{folder}/data/meta.mat", b"MATLAB 5.0 MAT-file" + b"\0" * 600),
        (f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        (f"{folder}/data/ILSVRC2012_validation_blacklist.txt", b"6\n17\n"),
    ]


def devkit_tar():
    return gzip.compress(tar_of(devkit()), mtime=0)


def lines_of(pictures, line):
    return "".join(line(name, label) for name, _, label in pictures)


def kaggle_files(pictures=VAL):
    box = "{0} 85 1 499 272 {0} 1 2 3 4".format
    solution = "ImageId,PredictionString\n" + lines_of(shuffled(pictures), lambda n, i: f"{n[:-5]},{box(WNIDS[i])}\n")
    count = "".join(f"{name[:-5]} {int(name[15:23])}\n" for name, _, _ in pictures)
    mapping = "".join(f"{wnid} {name}, something else\n" for wnid, name in zip(WNIDS, NAMES, strict=True))
    data = "ILSVRC/Data/CLS-LOC"
    return [
        *((f"{data}/val/{name}", content) for name, content, _ in pictures),
        *((f"{data}/train/{name[:9]}/{name}", content) for name, content, _ in TRAIN),
        (f"{data}/test/ILSVRC2012_test_00000001.JPEG", picture(77)),
        ("LOC_val_solution.csv", solution.encode()),
        ("LOC_synset_mapping.txt", mapping.encode()),
        ("ILSVRC/ImageSets/CLS-LOC/val.txt", count.encode()),
        ("ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000005.xml", b"<annotation/>"),
    ]


def schema(names=None):
    names = [f"{name}, {wnid}" for name, wnid in zip(NAMES, WNIDS, strict=True)] if names is None else names
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )


def table_of(pictures, wnid_in_path=True, names=None):
    paths = [f"{name[:-5]}_{WNIDS[i]}.JPEG" if wnid_in_path and i >= 0 else name for name, _, i in pictures]
    images = [{"bytes": content, "path": path} for (_, content, _), path in zip(pictures, paths, strict=True)]
    return pa.table([images, [label for _, _, label in pictures]], schema=schema(names))


def parquet(path, pictures, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(pictures, **options), path, row_group_size=3)
    return path


def shard_of(pictures, key=lambda name, place, label: name[:-5], image_key="jpg", label_text=lambda label: str(label)):
    members = []
    for place, (name, content, label) in enumerate(pictures):
        base = key(name, place, label)
        members += [(f"{base}.cls", label_text(label).encode()), (f"{base}.{image_key}", content)]
    return tar_of(members)


def arrow(path, pictures):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table_of(pictures)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, 3)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def proto(number, content):
    return varint(8 * number + 2) + varint(len(content)) + content


def tfrecord(examples):
    content = b""
    for example in examples:
        features = b""
        for key, value in example.items():
            kind = proto(3, proto(1, varint(value))) if isinstance(value, int) else proto(1, proto(1, value))
            features += proto(1, proto(1, key.encode()) + proto(2, kind))
        record = proto(1, features)
        size = struct.pack("<Q", len(record))
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (size, record[:0])]
        content += size + crcs[0] + record + crcs[1]
    return content
