"""The cache of compiled models as rows; imports neither torch nor tvm."""

from __future__ import annotations

from datetime import datetime, timezone

from quantvm.compiler.cache import CacheEntry, default_cache
from quantvm.jobs.compilation.schema import CacheEntryRow, CacheRow


def describe_cache() -> CacheRow:
    """Returns what the user's cache of compiled models holds, the last used first.

    Raises:
        ConfigError: QUANTVM_CACHE_BYTES is no number.
    """
    cache = default_cache()
    entries = [_entry(entry) for entry in cache.entries()]
    return {
        "folder": str(cache.folder),
        "limit_bytes": cache.limit_bytes,
        "total_bytes": sum(entry["size_bytes"] for entry in entries),
        "entries": entries,
    }


def _entry(entry: CacheEntry) -> CacheEntryRow:
    manifest = entry.manifest
    report = None if manifest is None else manifest.report
    return {
        "key": entry.key,
        "path": str(entry.path),
        "size_bytes": entry.size_bytes,
        "used_at": datetime.fromtimestamp(entry.used_s, timezone.utc).isoformat(timespec="seconds"),
        "target": None if report is None else report.target,
        "engine": None if report is None else report.engine,
        "threads": None if report is None else report.threads,
        "inputs": None if manifest is None else [spec.shape_text for spec in manifest.signature.inputs],
        "int8_mac_share": None if report is None else report.int8_mac_share,
    }
