"""One model compiled into a file: a quantized one of the user's own, or a float one that is quantized first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import ConfigError, missing_package_named
from quantvm.jobs.compilation.config import CompileConfig
from quantvm.jobs.compilation.schema import CompileResult, CompileRow
from quantvm.jobs.evaluation.config import RunConfig, raise_problems, resolve_threads, with_engine
from quantvm.jobs.evaluation.plan import Plan, prepare
from quantvm.jobs.evaluation.stages import Stages
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.schema import SCHEMA_VERSION
from quantvm.score.parity import int8_share_problem
from quantvm.storage.download import sha256_of
from quantvm.workload.user_models import UserProgram, load_model

if TYPE_CHECKING:
    from torch import nn

    from quantvm.models import ModelSpec
    from quantvm.runtime import Artifact


@missing_package_named()
def compile_to_file(
    config: CompileConfig, *, progress: Progress = SILENT, stages: Stages | None = None
) -> CompileResult:
    """Returns what the model was compiled to, after writing the file if one is asked for.

    The file is written even where the share of multiply-adds in int8 is below what was asked for.

    Raises:
        QuantvmError: an option, the model or its weights are wrong, it cannot be compiled, or the file not be written.
    """
    stages = stages or Stages()
    raise_problems(config.problems())
    artifact = (_quantized_here if config.is_registered else _own)(config, progress, stages)
    file = None if config.out is None else artifact.save(config.out)
    return CompileResult(_row(config, artifact, file))


def _quantized_here(config: CompileConfig, progress: Progress, stages: Stages) -> Artifact:
    """Quantizes and compiles a float model, of the registry or of a factory, as the main job does."""
    run_config = config.run_config()
    plan = prepare(run_config, stages, progress)
    stages.use_threads(plan.threads)
    with stages.torch_engine(run_config):
        spec, quantized = quantize_only_model(plan, run_config, stages, progress, flow=config.flow)
        titled = TitledProgress(progress, spec.title)
        return stages.compile(
            quantized, spec, run_config, plan.threads, titled, numerics=config.numerics, cache=not config.audit,
            verify=config.verify,
        )  # fmt: skip


def quantize_only_model(
    plan: Plan, run_config: RunConfig, stages: Stages, progress: Progress, *, flow: str | None = None
) -> tuple[ModelSpec, nn.Module]:
    """Returns the only model of a plan, which was named, and its quantized form."""
    spec, _, quantized = float_and_quantized(plan, run_config, stages, progress, flow=flow)
    return spec, quantized


def float_and_quantized(
    plan: Plan, run_config: RunConfig, stages: Stages, progress: Progress, *, flow: str | None = None
) -> tuple[ModelSpec, nn.Module | None, nn.Module]:
    """Returns the only model of a plan, its float form (None where only integers were published), and its quantized.

    Args:
        plan: of that model.
        run_config: as the main job has it; its flows do not count.
        stages: the calls.
        progress: where long work reports to.
        flow: how PyTorch quantizes; None for the first way in which it can.

    Raises:
        ConfigError: PyTorch cannot quantize the model by that flow.
    """
    (entry,) = plan.entries
    assert entry.weights is not None  # a named model has weights, or prepare raises
    titled = TitledProgress(progress, entry.spec.title)
    inputs = stages.calibration_inputs(entry.spec, plan.calibration)
    float_model = stages.build_float_model(entry.spec, entry.weights, inputs, run_config)
    if flow is not None and float_model is not None and flow not in entry.spec.flows:
        raise ConfigError(
            f"{entry.spec.name}: PyTorch cannot quantize it by the flow {flow}; use {' or '.join(entry.spec.flows)}"
        )
    run_config = dataclasses.replace(run_config, flows=(flow or entry.spec.flows[0],))
    quantized = stages.quantize(entry.spec, entry.weights, float_model, inputs, run_config, titled)
    return entry.spec, float_model, quantized


def _own(config: CompileConfig, progress: Progress, stages: Stages) -> Artifact:
    """Compiles what the user quantized, or quantizes and calibrates the float model of a factory first."""
    run_config = config.run_config()
    raise_problems(stages.unsupported_options(run_config))
    threads = resolve_threads(config.threads, stages.physical_cores())
    found = load_model(config.model, input_shapes=config.input_shapes, engine=config.engine)
    if not isinstance(found, UserProgram):
        if config.batch == "static":
            raise ConfigError(f"batch: {config.model} is a float model, which is compiled for any number of images")
        return _quantized_here(config, progress, stages)
    found.check(as_classifier=False)
    with stages.torch_engine(with_engine(run_config, found.engine)):
        return found.compile(
            numerics=None if config.numerics == "torch" else config.numerics,
            engine=config.engine,
            target=config.target,
            batch=config.batch,
            threads=threads,
            cache=not config.audit,  # assembly is only at hand where code is generated
            verify=config.verify,
            progress=progress,
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
