"""Stages that need neither torch nor tvm nor images: the benchmark's own logic is what is tested with them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from quantvm.data import Batch, CalibrationSet, Dataset, Sample
from quantvm.errors import UnknownNameError
from quantvm.jobs.evaluation.stages import Stages
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


class FakeStages(Stages):
    """`tvm` maps a model's name to what its TVM engine answers; a missing name means the same as PyTorch."""

    def __init__(self, models=("alpha", "beta"), n=20, tvm=None, unavailable=(), output_scale=0.25):
        self.models, self.n, self.tvm, self.unavailable = models, n, tvm or {}, unavailable
        self.output_scale, self.runners, self.threads = output_scale, [], None
        self.torch = scores_of

    def get_model(self, name):
        if name not in self.models:
            raise UnknownNameError(f"unknown model '{name}'. Known models: {', '.join(self.models)}")
        flows = ("fx", "pt2e") if name == "graph_only" else ("eager", "fx", "pt2e")
        return SimpleNamespace(name=name, title=name.upper(), preprocessing=SimpleNamespace(crop=4), flows=flows)

    def default_models(self):
        return [self.get_model(name) for name in self.models]

    def physical_cores(self):
        return 3

    def unsupported_options(self, config):
        return []

    def load_dataset(self, config, progress):
        samples = tuple(Sample(f"a/{i:03}.png", Path(f"/nowhere/a/{i:03}.png"), i % CLASSES) for i in range(self.n))
        return Dataset("fake", Path("/nowhere"), samples, config.num_samples, is_default=config.data is None)

    def load_calibration(self, config, dataset, progress):
        return CalibrationSet(tuple(sample.path for sample in dataset.samples[:5]), "5 of the images themselves")

    def resolve_weights(self, spec, config, progress):
        if spec.name in self.unavailable:
            raise WeightsUnavailableError(spec.name, "there is no network", f"Run: quantvm fetch weights {spec.name}")
        return ResolvedWeights("file somewhere", Path("/nowhere/weights.pth"), "ab" * 32)

    def describe_environment(self, threads):
        return {
            "versions": {"python": "3.11.0", "torch": "2.13.0", "nothing": None},
            "git": None,
            "platform": "Test",
            "cpu": {"model": "Fake CPU", "features": ["avx2"], "physical_cores": 3},
            "threads": threads,
            "env": {},
        }

    def use_threads(self, threads):
        self.threads = threads

    def torch_engine(self, config):
        return nullcontext()

    def build_float_model(self, spec, weights, inputs, config):
        return SimpleNamespace(name=spec.name)

    def quantize(self, spec, weights, float_model, inputs, config, progress):
        (flow,) = config.flows
        name = spec.name if flow == "eager" else f"{spec.name} {flow}"
        return SimpleNamespace(
            name=name, quantvm_engine=config.engine, quantvm_scheme=config.scheme, quantvm_n_calibration=5
        )

    def compile(self, quantized, spec, config, threads, progress, *, numerics, cache=True, verify=False):
        report = SimpleNamespace(
            engine=config.engine,
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
        return SimpleNamespace(name=quantized.name, numerics=numerics, report=report)

    def latencies_ms(self, runners, x_f32):
        return [2.0 + i for i in range(len(runners))]

    def torch_runner(self, module, threads):
        return self._runner(self.torch)

    def tvm_runner(self, artifact, threads):
        return self._runner(
            self.tvm.get(f"{artifact.name} {artifact.numerics}", self.tvm.get(artifact.name, self.torch))
        )

    def _runner(self, answer):
        self.runners.append(FakeRunner(answer))
        return self.runners[-1]

    def batches(self, samples, spec, config):
        for start in range(0, len(samples), config.batch_size):
            chosen = samples[start : start + config.batch_size]
            x_f32 = np.stack([image_of(sample) for sample in chosen])
            yield Batch(tuple(s.id for s in chosen), x_f32, np.array([s.label for s in chosen], dtype=np.int64))


def image_of(sample):
    """Returns a (3, 4, 4) image on which `scores_of` answers with the sample's label on even places, else wrongly."""
    index = int(sample.id[2:5])
    x_f32 = np.random.default_rng(index).permutation(48).astype(np.float32).reshape(3, 4, 4) / 1000
    best = sample.label if index % 2 == 0 else (sample.label + 1) % CLASSES
    x_f32.reshape(-1)[best] = 1.0
    return x_f32
