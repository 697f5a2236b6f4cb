"""The profile of TVM's code for one model, as bench.json holds it; made in a process of its own."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np

from quantvm.jobs.latency.engines import Job
from quantvm.jobs.latency.schema import ProfileRow
from quantvm.runtime.target import Machine

if TYPE_CHECKING:
    from quantvm.compiler.profile import Profile


def profile_job(job: Job, batch: int, *, min_calls: int, min_seconds: float) -> ProfileRow:
    """Returns where TVM's time goes for a batch size.

    Args:
        job: the job of engine `tvm`; its folder holds the reference engine's file and the input.
        batch: images in one call.
        min_calls: the least number of calls.
        min_seconds: the least duration of all calls together.
    """
    import torch

    from quantvm.compiler.profile import profile
    from quantvm.frontend import import_model

    # a file's weights are unpacked for the engine that is set
    torch.backends.quantized.engine = job.tvm_engine
    gc.disable()
    try:
        x_f32 = np.load(job.input_path)[:batch]
        module = import_model(job.program_path, x_f32[:1], engine=None if job.flow == "pt2e" else job.tvm_engine)
        return profile_row(
            profile(module, x_f32, Machine(job.target, job.threads), min_calls=min_calls, min_seconds=min_seconds)
        )
    finally:
        gc.enable()


def profile_row(found: Profile) -> ProfileRow:
    """Returns a profile with the sums that a reader wants."""
    kernels_ms = sum(call.p50_ms for call in found.calls)
    return {
        "total_ms": found.total_ms,
        "kernels_ms": kernels_ms,
        "hook_ms": found.hook_ms * len(found.calls),
        "instrumented_ms": found.instrumented_ms,
        "n": found.n,
        "calls": [
            {
                "layer": call.layer,
                "op": call.op,
                "kernel": call.kernel,
                "in_shapes": [list(shape) for shape in call.in_shapes],
                "out_shape": list(call.out_shape),
                "macs": call.macs,
                "p50_ms": call.p50_ms,
            }
            for call in found.calls
        ],
    }
