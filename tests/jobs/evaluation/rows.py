"""A run as run.json holds it, small and complete, for the tests to vary."""

from __future__ import annotations

import copy

PASSED = {
    "name": "mobilenet_v3_small",
    "title": "mobilenet_v3 small",
    "status": "passed",
    "reason": None,
    "remedy": None,
    "scheme": "per-channel",
    "engine": "fbgemm",
    "flow": "eager",
    "reference": "PyTorch",
    "preprocessing": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3},
    "numerics": "torch",
    "weights": {"source": "file small.pth", "sha256": "ab" * 32},
    "calibration": {"n": 20, "source": "20 of 600 images of shots (train)"},
    "n_images": 40,
    "fp32": {"top1": 90.0, "top5": 97.5},
    "torch": {"top1": 87.5, "top5": 95.0},
    "tvm": {"top1": 87.5, "top5": 95.0},
    "parity": {
        "raw_outputs_total": 40000,
        "raw_outputs_identical": 39999,
        "images_total": 40,
        "images_identical": 39,
        "max_abs_diff": 0.125,
        "mean_abs_diff": 3.125e-06,
        "max_lsb": 1,
        "greatest_difference": {"id": "a/1.png", "index": 7, "torch": 1.5, "tvm": 1.625},
        "top1_agreement": 100.0,
        "first_image": {
            "id": "a/0.png",
            "torch_top5_labels": [101, 386, 385, 340, 354],
            "tvm_top5_labels": [101, 386, 385, 340, 351],
            "torch_top5_raw": [18.008299, 17.13693, 14.813278, 8.423237, 8.13278],
            "tvm_top5_raw": [17.717844, 16.846474, 14.232366, 8.423237, 8.13278],
            "max_abs_diff": 0.87136936,
            "mean_abs_diff": 0.14464732,
            "identical": 532,
            "total": 1000,
        },
    },
    "int8_mac_share": 0.9999,
    "float_ops": [],
    "target": "llvm -mcpu=znver5",
    "import_s": 0.5,
    "compile_s": 12.25,
    "cached": False,
    "load_s": None,
    "cpus": ["Some CPU"],
    "same_bits": None,
    "latency_ms": None,
    "duration_s": 20.0,
}

SKIPPED = {
    **PASSED,
    "name": "resnet18",
    "title": "resnet18",
    "status": "skipped",
    "reason": "resnet18-f37072fd.pth is not on this machine",
    "remedy": "With a network run: quantvm fetch weights",
    **dict.fromkeys(("weights", "calibration", "fp32", "torch", "tvm", "parity", "int8_mac_share", "target")),
    **dict.fromkeys(("import_s", "compile_s", "cached", "latency_ms")),
    "n_images": 0,
    "cpus": [],
    "duration_s": 0.0,
}

RUN = {
    "schema_version": 1,
    "command": "quantvm run",
    "started_at": "2026-01-02T03:04:05+00:00",
    "duration_s": 21.5,
    "interrupted": False,
    "config": {
        "weights": "auto",
        "scheme": "per-channel",
        "engine": "fbgemm",
        "flows": ["eager"],
        "numerics": ["torch"],
        "target": "native",
        "batch_size": 8,
        "check_parity": None,
        "min_top1": None,
    },
    "environment": {
        "versions": {"python": "3.11.0", "torch": "2.13.0", "nothing": None},
        "git": None,
        "platform": "Linux",
        "cpu": {"model": "Some CPU", "features": ["avx512vnni", "avx2"], "physical_cores": 2},
        "threads": 2,
        "env": {},
    },
    "seed": 0,
    "dataset": {
        "name": "shots",
        "root": "/data/shots/val",
        "is_default": False,
        "form": "sorted-folders",
        "labels": "the place of the folder's name in sorted order",
        "summary": "60 images of 4 classes, 15 of each",
        "n_requested": 40,
        "n_used": 40,
        "n_bad": 0,
        "bad": [],
        "sha256": "cd" * 32,
        "notes": [],
    },
    "models": [PASSED, SKIPPED],
    "agreement": [],
}


def run_row(**changes):
    """Returns the run with some of its fields replaced; `config__weights="random"` reaches into a field."""
    run = copy.deepcopy(RUN)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = run
        for part in path:
            place = place[part]
        place[last] = value
    return run


def model_row(**changes):
    """Returns the measured model with some of its fields replaced."""
    return {**copy.deepcopy(PASSED), **changes}
