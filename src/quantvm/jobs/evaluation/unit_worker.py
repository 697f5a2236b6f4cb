"""What a worker does: it opens one kept network after the other, and computes units of it; see `spread.py`.

Nothing is written: parts go back to the driver.
"""

from __future__ import annotations

import gc
import os
import platform
from contextlib import ExitStack, closing

from quantvm.data import iterate_batches
from quantvm.errors import MachineError, QuantvmError
from quantvm.jobs.evaluation.compute import ShardWork
from quantvm.jobs.evaluation.kept_programs import program_of_row
from quantvm.jobs.evaluation.network import Engines
from quantvm.jobs.evaluation.unit_messages import Answer, Computed, Failed, NetworkJob, Opened, Request, ShardTask
from quantvm.runtime.target import cpu_model
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import software as installed_software
from quantvm.workload.environment import use_threads
from quantvm.workload.runners import float_runner


class UnitWorker:
    """One worker; it has one network open at a time."""

    def __init__(self) -> None:
        self._job: NetworkJob | None = None
        self._engines: Engines | None = None
        self._engine_in_use = ExitStack()

    def answer(self, request: Request) -> Answer:
        """Does what is asked for; whatever is raised becomes the answer."""
        key = request.key if isinstance(request, NetworkJob) else "" if self._job is None else self._job.key
        work = None
        try:
            if isinstance(request, NetworkJob):
                self._open(request)
                return Opened(key, cpu_model(), f"{platform.node()}, process {os.getpid()}")
            work = ShardWork(request, cpu_model())
            self._compute(request, work)
            return Computed(key, work.parts())
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything; the driver tells it
            return Failed.of(key, error, {} if work is None else work.parts())

    def _open(self, job: NetworkJob) -> None:
        self._engines, self._job = None, job
        gc.collect()  # before the next network is loaded
        raise_other_software(job)
        use_threads(job.machine)
        self._engine_in_use.close()
        self._engine_in_use.enter_context(quantization_engine(job.quantization.engine))
        self._engines = engines_of(job)

    def _compute(self, task: ShardTask, work: ShardWork) -> None:
        job, engines = self._job, self._engines
        assert job is not None
        assert engines is not None  # the driver asks only workers that have opened the network
        batches = iterate_batches(
            task.samples, job.preprocessing, job.batch_size,
            workers=job.machine.threads,  # other workers use the other cores
            prepared=job.images,
        )  # fmt: skip
        with closing(batches):
            for _ in work.run(engines, batches):
                pass


def engines_of(job: NetworkJob) -> Engines:
    """Returns the engines of a kept network.

    Raises:
        QuantvmError: a file is missing, or this machine cannot run the code.
    """
    from quantvm.runtime import load

    program = program_of_row(job.program, job.folder, job.own)
    tvm = {each: program.tvm_runner(load(job.folder / file), job.machine) for each, (file, _) in job.codes.items()}
    fp32 = None
    if job.float_program is not None and job.float_folder is not None:
        module = program_of_row(job.float_program, job.float_folder, None).callable_module()
        fp32 = float_runner(module, threads=job.machine.threads, optimized=job.float_program["is_optimized"])
    return Engines(fp32, program.runner(job.machine), tvm)


class OtherSoftwareError(QuantvmError):
    """A worker has other versions than the driver."""


def raise_other_software(job: NetworkJob) -> None:
    """Makes sure that this process has the driver's versions.

    Raises:
        OtherSoftwareError: it has not; the message names all that differ.
    """
    here = installed_software()
    names = dict.fromkeys([*job.software, *here])
    different = [
        f"{name} {here.get(name)} instead of {job.software.get(name)}"
        for name in names
        if here.get(name) != job.software.get(name)
    ]
    if different:
        raise OtherSoftwareError(f"it has {', '.join(different)}; install what the driver has, for bits depend on it")


REFUSALS = (OtherSoftwareError, MachineError)
"""Errors by which a worker says that its machine cannot take part; others may."""
