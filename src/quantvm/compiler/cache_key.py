"""The name of a compiled model in the cache: a digest of everything that the code depends on."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import InternalError
from quantvm.qdq.expressions import constant_value, is_constant
from quantvm.runtime.manifest import SCHEMA_VERSION
from quantvm.storage.digests import sha256_of_sources

if TYPE_CHECKING:
    from quantvm.lowering import LoweringOptions

_SOURCES = ("kernels", "lowering", "qdq", "numerics", "compiler", "runtime", "choices.py", "sizes.py", "tvm_compat.py")
"""The sources that turn an imported module into an artifact. An edit of any of them makes all entries stale."""


def cache_key(module: Any, options: LoweringOptions) -> str:
    """Returns 64 hexadecimal digits, equal in every process for what compiles to the same code.

    Args:
        module: Relax in QDQ form; its structure and every bit of its constants count.
        options: how it is compiled: target, numerics, threads and schedules count.
    """
    return hashlib.sha256(json.dumps(key_parts(module, options), sort_keys=True).encode()).hexdigest()


def key_parts(module: Any, options: LoweringOptions) -> dict[str, Any]:
    """Returns the parts of a key by name."""
    from quantvm.kernels.builder import target_features
    from quantvm.runtime.requirements import this_architecture
    from quantvm.runtime.target import target_text
    from quantvm.tvm_compat import tvm_version

    return {
        "schema": SCHEMA_VERSION,
        "quantvm": metadata.version("quantvm"),
        "sources": digest_of_sources(),
        "tvm": tvm_version(),
        "architecture": this_architecture(),
        "target": target_text(options.target),
        "features": sorted(target_features(options.target)),
        "numerics": options.numerics,
        "threads": options.threads,
        "schedules": options.schedules.digest(),
        "module": digest_of_module(module),
    }


def digest_of_module(module: Any) -> str:
    """Returns the SHA-256 of a Relax module: its script without the constants, and the bytes of each of them in order.

    The script prints scalars with 17 digits, and shows which constants are the same object.
    """
    from tvm import relax

    digest = hashlib.sha256(module.script(show_meta=False).encode())

    def visit(expr: Any) -> None:
        if is_constant(expr):
            array = constant_value(expr)
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())

    for variable in sorted(module.get_global_vars(), key=lambda v: str(v.name_hint)):
        function = module[variable]
        if not isinstance(function, relax.Function):
            raise InternalError(f"cannot digest {variable.name_hint}, which is no Relax function")
        relax.analysis.post_order_visit(function, visit)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def digest_of_sources() -> str:
    """Returns the SHA-256 of those sources of quantvm that compile a module."""
    return sha256_of_sources(Path(__file__).parents[1], _SOURCES)
