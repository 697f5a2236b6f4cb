"""Names in a run folder of an evaluation."""

RUN_JSON = "run.json"
REPORT = "report.md"
SAMPLES = "samples.parquet"
MANIFEST = "manifest.json"

NETWORKS = "networks"
"""The folder of the networks that are evaluated."""

UNITS = "units"
"""The folder of what was computed, by side and shard."""

IMAGES = "images"
"""The folder of decoded images, while a run is under way."""

CONTENTS = "images.parquet"
"""Digests of the images."""
