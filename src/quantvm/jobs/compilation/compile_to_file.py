"""Compiles one model into a file: a quantized one of the user's own, or a float one that is quantized first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import missing_package_named
from quantvm.jobs.compilation.config import CompileConfig
from quantvm.jobs.compilation.schema import CompileResult, CompileRow
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.score.parity import int8_share_problem
from quantvm.storage.digests import sha256_of
from quantvm.torch_compat import quantization_engine
from quantvm.workload.plan import machine_of, unsupported_options
from quantvm.workload.prepare import prepare

if TYPE_CHECKING:
    from quantvm.runtime import Artifact


@missing_package_named()
def compile_to_file(config: CompileConfig, *, progress: Progress = SILENT) -> CompileResult:
    """Returns what the model was compiled to, after writing the file if one is asked for.

    The file is written even if the share of multiply-adds in int8 is below what was asked for.

    Raises:
        QuantvmError: an option, the model or its weights are wrong, or the model cannot be compiled, or the file cannot
            be written.
    """
    raise_problems(config.problems())
    raise_problems(unsupported_options(config))
    artifact = compiled(config, progress)
    file = None if config.out is None else artifact.save(config.out)
    return CompileResult(_row(config, artifact, file))


def compiled(config: CompileConfig, progress: Progress) -> Artifact:
    """Returns the model compiled; a float one is quantized first, as in an evaluation."""
    needs_any_number = f"batch: {config.model} is a float model, which is compiled for any number of images"
    program, _ = prepare(
        config.model, config, refuse_float=needs_any_number if config.batch == "static" else None, progress=progress
    )
    if program.is_own:
        program.check(as_classifier=False)
    with quantization_engine(program.engine or config.engine):
        return program.compile(
            machine_of(config),
            numerics=config.numerics,
            batch=config.batch,
            cache=not config.audit,  # assembly exists only if code is generated now
            verify=config.verify,
            progress=progress if program.title is None else TitledProgress(progress, program.title),
        )


def _row(config: CompileConfig, artifact: Artifact, file: Path | None) -> CompileRow:
    from quantvm.compiler import audit

    report = artifact.report
    audited = None
    if config.audit:
        audited = [dataclasses.asdict(kernel) for kernel in audit(artifact)]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": config.model,
        "file": None if file is None else str(file),
        "size_bytes": None if file is None else file.stat().st_size,
        "sha256": None if file is None else sha256_of(file),
        "target": report.target,
        "architecture": artifact.requirements.architecture,
        "cpu_features": list(artifact.requirements.cpu_features),
        "engine": report.engine,
        "numerics": report.numerics,
        "threads": report.threads,
        "inputs": [_tensor(spec) for spec in artifact.signature.inputs],
        "outputs": [_tensor(spec) for spec in artifact.signature.outputs],
        "int8_mac_share": report.int8_mac_share,
        "float_ops": [
            {"op": op, "reason": reason} for op, reason in zip(report.float_ops, report.float_reasons, strict=True)
        ],
        "kernels": report.kernels,
        "import_s": report.import_s,
        "compile_s": report.compile_s,
        "cached": report.cached,
        "load_s": report.load_s,
        "verification": report.verification.row(),  # type: ignore[typeddict-item]  # the fields of VerificationRow
        "audit": audited,  # type: ignore[typeddict-item]  # the fields of KernelAudit
        "problem": int8_share_problem(report.int8_mac_share, config.min_int8_macs),
    }


def _tensor(spec: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(spec), "shape": list(spec.shape), "symbols": list(spec.symbols)}
