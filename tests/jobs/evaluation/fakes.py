"""Models, images and engines that need neither torch nor tvm: an evaluation's own logic is tested with them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import quantvm
from quantvm.data import Batch, CalibrationSet, Dataset, Sample
from quantvm.data.preprocess import Geometry
from quantvm.errors import UnknownNameError
from quantvm.jobs.evaluation.kept_programs import NotKeptError
from quantvm.models.weights import ResolvedWeights, WeightsUnavailableError

CLASSES = 10


def scores_of(x_f32):
    """Raw outputs that depend on the image: on a grid of 1/4, distinct within an image, as a quantized model's are."""
    steps = (x_f32.reshape(len(x_f32), -1)[:, :CLASSES] * 1000).round()
    return (steps / 4).astype(np.float32)


@dataclass
class FakeRunner:
    answer: object
    seen: list = field(default_factory=list)

    def run(self, x_f32):
        self.seen.append(x_f32)
        return self.answer(x_f32)


@dataclass
class FakeProgram:
    """A quantized model in the place of `quantvm.workload.program.Program`."""

    fakes: FakeWorkload
    name: str
    float_module: object
    quantvm_engine: str
    quantvm_scheme: str
    quantvm_n_calibration: int = 5
    reference: str = "PyTorch"

    def compile(self, machine, *, numerics, progress):
        return self.fakes.compile(self, numerics)

    def runner(self, machine):
        return self.fakes.runner(self.fakes.torch)

    def tvm_runner(self, artifact, machine):
        return self.fakes.tvm_runner(artifact)


class FakeWorkload:
    """Models, images and engines; `tvm` maps a model's name to what its TVM engine answers, else that is PyTorch's."""

    def __init__(self, models=("alpha", "beta"), n=20, tvm=None, unavailable=(), output_scale=0.25):
        self.models, self.n, self.tvm, self.unavailable = models, n, tvm or {}, unavailable
        self.output_scale, self.runners, self.threads = output_scale, [], None
        self.torch = scores_of

    @contextmanager
    def in_place(self):
        """Puts the fakes where an evaluation calls the real functions."""
        plan, chain = "quantvm.workload.plan", "quantvm.jobs.evaluation.evaluate"
        networks = "quantvm.jobs.evaluation.networks"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{plan}.get_model", self.get_model)
            patch.setattr(f"{plan}.list_models", lambda: [self.get_model(name) for name in self.models])
            patch.setattr(f"{plan}.resolve_weights", self.resolve_weights)
            patch.setattr(f"{plan}.physical_cores", lambda: 3)
            patch.setattr(f"{plan}.unsupported_options", self.unsupported_options)
            patch.setattr(f"{plan}.find_data", lambda data: None)
            patch.setattr(f"{plan}.load_dataset", self.load_dataset)
            patch.setattr(f"{plan}.load_calibration", self.load_calibration)
            patch.setattr(f"{plan}.iterate_parts", self.iterate_parts)
            patch.setattr("quantvm.workload.head.describe_environment", self.describe_environment)
            patch.setattr(f"{chain}.use_threads", self.use_threads)
            patch.setattr(f"{chain}.quantization_engine", lambda engine: nullcontext())
            patch.setattr(f"{networks}.quantized", self.quantized)
            patch.setattr(f"{networks}.float_runner", lambda module, *, threads: self.runner(self.torch))
            patch.setattr(f"{networks}.digest_of_weights", lambda module: "cd" * 32)
            patch.setattr(f"{networks}.digest_of_program", lambda program: program.name)
            patch.setattr(f"{networks}.kept_program", self.kept_program)
            patch.setattr(f"{chain}.latencies_ms", lambda runners, x_f32: [2.0 + i for i in range(len(runners))])
            yield

    def get_model(self, name):
        if name not in self.models:
            raise UnknownNameError(f"unknown model '{name}'. Known models: {', '.join(self.models)}")
        flows = ("fx", "pt2e") if name == "graph_only" else ("eager", "fx", "pt2e")
        preprocessing = SimpleNamespace(crop=4, geometry=Geometry(4, 4, "bilinear"))
        return SimpleNamespace(
            name=name, title=name.upper(), preprocessing=preprocessing, flows=flows, in_default_run=True
        )

    def unsupported_options(self, options):
        return []

    def load_dataset(self, data, *, num_samples, **options):
        samples = tuple(Sample(f"a/{i:03}.png", Path(f"/nowhere/a/{i:03}.png"), i % CLASSES) for i in range(self.n))
        return Dataset("fake", Path("/nowhere"), samples, num_samples, is_default=data is None)

    def load_calibration(self, data, calibration_data, *, evaluation, **options):
        return CalibrationSet(tuple(sample.source for sample in evaluation.samples[:5]), "5 of the images themselves")

    def resolve_weights(self, spec, policy, *, progress):
        if spec.name in self.unavailable:
            raise WeightsUnavailableError(spec.name, "there is no network", f"Run: quantvm fetch weights {spec.name}")
        return ResolvedWeights("file somewhere", Path("/nowhere/weights.pth"), "ab" * 32)

    def describe_environment(self, machine):
        return {
            "versions": {"python": "3.11.0", "torch": "2.13.0", "nothing": None},
            "git": None,
            "platform": "Test",
            "cpu": {"model": "Fake CPU", "features": ["avx2"], "physical_cores": 3},
            "threads": machine.threads,
            "env": {},
        }

    def use_threads(self, machine):
        self.threads = machine.threads

    def quantized(self, entry, plan, flow, progress):
        name = entry.spec.name if flow == "eager" else f"{entry.spec.name} {flow}"
        return FakeProgram(self, name, object(), plan.options.engine, plan.options.scheme)

    def kept_program(self, program, folder):
        raise NotKeptError("a fake")

    def compile(self, program, numerics):
        report = SimpleNamespace(
            engine=program.quantvm_engine,
            numerics=numerics,
            import_s=0.5,
            compile_s=2.0,
            cached=False,
            load_s=None,
            int8_mac_share=0.9996,
            float_ops=("aten::softmax",),
            target="llvm -mcpu=fake",
            output_scale=self.output_scale,
        )
        return SimpleNamespace(name=program.name, numerics=numerics, report=report, key=f"{program.name} {numerics}")

    def tvm_runner(self, artifact):
        return self.runner(
            self.tvm.get(f"{artifact.name} {artifact.numerics}", self.tvm.get(artifact.name, self.torch))
        )

    def runner(self, answer):
        self.runners.append(FakeRunner(answer))
        return self.runners[-1]

    def iterate_parts(self, parts, preprocessing, batch_size, **options):
        for part in parts:
            for start in range(0, len(part), batch_size):
                chosen = part[start : start + batch_size]
                x_f32 = np.stack([image_of(sample) for sample in chosen])
                yield Batch(tuple(s.id for s in chosen), x_f32, np.array([s.label for s in chosen], dtype=np.int64))


def evaluate(fakes, *arguments, **options):
    """Returns `quantvm.evaluate` of fake models."""
    with fakes.in_place():
        return quantvm.evaluate(*arguments, **options)


def image_of(sample):
    """Returns a (3, 4, 4) image on which `scores_of` answers with the sample's label on even places, else wrongly."""
    index = int(sample.id[2:5])
    x_f32 = np.random.default_rng(index).permutation(48).astype(np.float32).reshape(3, 4, 4) / 1000
    best = sample.label if index % 2 == 0 else (sample.label + 1) % CLASSES
    x_f32.reshape(-1)[best] = 1.0
    return x_f32
