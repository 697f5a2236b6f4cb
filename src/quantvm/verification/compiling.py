"""`quantvm.compile`: a quantized program compiled, and compared with what its own framework computes."""

from __future__ import annotations

import dataclasses
from typing import Any

from quantvm.compiler import compile as build
from quantvm.errors import missing_package_named
from quantvm.progress import SILENT, Progress
from quantvm.runtime import Artifact
from quantvm.runtime.verdict import Verification


@missing_package_named()
def compile_model(
    model_or_path: Any,
    example_inputs: Any = None,
    *,
    verify: bool = True,
    numerics: str | None = None,
    engine: str | None = None,
    target: str = "native",
    batch: str = "dynamic",
    threads: int | None = None,
    cache: bool = True,
    progress: Progress = SILENT,
) -> Artifact:
    """Returns the quantized model compiled to int8 code, whose outputs were compared with those of its own framework.

    The reference is PyTorch, ONNX Runtime (unfused) or LiteRT. It runs the example inputs, or seeded ones, at two batch
    sizes if the batch is dynamic. `artifact.verification` has the result, with one of the verdicts of
    `quantvm.runtime.verdict.MEANING`.

    Args:
        model_or_path: as for `quantvm.compiler.compile`, which compiles without comparing.
        example_inputs: as there.
        verify: whether the outputs are compared; without it the verdict is `not run`.
        numerics: as for `quantvm.compiler.compile`.
        engine: as there.
        target: as there.
        batch: as there.
        threads: as there.
        cache: whether to use code and verdicts of earlier compilations, and to keep these for later ones.
        progress: where a long compilation reports to.

    Raises:
        ConfigError: a wrong option.
        ModelImportError, UnsupportedOpError: the model cannot be imported.
        CompileError: the target or the numerics cannot be served.
        VerificationError: the compiled code does not compute what the reference does.
    """
    artifact = build(
        model_or_path, example_inputs, numerics=numerics, engine=engine, target=target, batch=batch, threads=threads,
        cache=cache, progress=progress,
    )  # fmt: skip
    if not verify:
        found = Verification("not run", "verify=False")
    else:
        found = _verified(artifact, model_or_path, example_inputs, target, cache, progress)
    artifact.report = dataclasses.replace(artifact.report, verification=found)
    return artifact


def _verified(
    artifact: Artifact, model_or_path: Any, example_inputs: Any, target: str, cache: bool, progress: Progress
) -> Verification:
    from quantvm.compiler.cache import chosen_cache

    from .checking import Subject, verify

    subject = Subject(artifact, model_or_path, example_inputs, target)
    return verify(subject, store=chosen_cache(cache), progress=progress)
