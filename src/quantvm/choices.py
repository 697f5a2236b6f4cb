"""The words that options take. This module imports nothing heavy, so commands can list them at once."""

from __future__ import annotations

from typing import Literal, get_args

Engine = Literal["fbgemm", "x86", "onednn", "qnnpack"]
"""PyTorch's engines of quantized operators."""
ENGINES: tuple[Engine, ...] = get_args(Engine)

Scheme = Literal["per-channel", "per-tensor"]
"""How weights are quantized."""
SCHEMES: tuple[str, ...] = get_args(Scheme)

Flow = Literal["eager", "fx", "pt2e"]
"""eager: modules are replaced. fx: a traced graph is rewritten. pt2e: an exported program is rewritten."""
FLOWS: tuple[str, ...] = get_args(Flow)

Rounding = Literal["upward", "to_even", "away"]
"""How numerics=integer rounds ties of fixed-point products."""
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

Numerics = Literal["torch", "qdq", "integer"]
"""torch: the bits of a PyTorch engine. qdq: float32 between dequantize and quantize. integer: no float between quantize
and dequantize."""
NUMERICS = (*get_args(Numerics), *(f"integer:{rounding}" for rounding in ROUNDINGS))
"""The values of `--numerics`; plain `integer` rounds upward, as QNN does by default."""

POLICIES = ("auto", "random", "torchvision-quantized")
"""Where weights may come from, if not from a folder."""

Interpolation = Literal["bilinear", "bicubic"]
"""How images are scaled."""
ClassMap = Literal["wnid", "sorted"]
"""How folders become classes."""
OnBadImage = Literal["stop", "skip"]
"""What to do about an image that cannot be read."""

DATA_FORMS = (
    "parquet", "arrow", "tfrecord", "webdataset", "wnid-folders", "wnid-names", "index-folders", "name-folders",
    "kaggle", "label-list", "devkit", "synset-list", "validation-numbers",
)  # fmt: skip
"""The forms in which ImageNet lies on disks, in the order in which they are tried."""
