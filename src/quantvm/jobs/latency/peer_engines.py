"""ONNX Runtime and OpenVINO (NNCF): other int8 runtimes, from the same float model and calibration images.

Both get the float model as ONNX and quantize it with their own tool and its defaults for CPUs. Both know the batch size
when they load, which makes OpenVINO much faster. They need the extra `peers`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.jobs.latency.engines import Facts, Job, Run, seconds

_INPUT, _BATCH = "x", "n"
_OPSET = 17


def _export_onnx(job: Job, path: Path) -> None:
    """Writes the float model as ONNX with a dynamic batch dimension."""
    import torch

    example_f32 = torch.from_numpy(np.load(job.input_path)[:1])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation warnings of the exporter
        torch.onnx.export(
            job.float_model(),
            (example_f32,),
            str(path),
            input_names=[_INPUT],
            dynamic_axes={_INPUT: {0: _BATCH}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _images(job: Job) -> Iterator[np.ndarray]:
    for batch_f32 in job.calibration_batches():
        for i in range(len(batch_f32)):
            yield np.ascontiguousarray(batch_f32[i : i + 1])


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU: QDQ, uint8 activations, int8 weights with a scale for each channel."""

    def __init__(self, job: Job) -> None:
        self._job, self._path = job, Path(job.folder, "onnxruntime.onnx")

    def build(self) -> Facts:
        """Writes the quantized ONNX file."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, images: Iterator[np.ndarray]) -> None:
                self._images = images

            def get_next(self) -> dict[str, np.ndarray] | None:
                image_f32 = next(self._images, None)
                return None if image_f32 is None else {_INPUT: image_f32}

        logging.disable(logging.WARNING)
        facts: Facts = {}
        with seconds(facts, "build_s"), tempfile.TemporaryDirectory(dir=self._job.folder) as folder:
            exported, prepared = Path(folder, "float.onnx"), Path(folder, "prepared.onnx")
            _export_onnx(self._job, exported)
            quant_pre_process(str(exported), str(prepared))
            quantize_static(
                str(prepared),
                str(self._path),
                Reader(_images(self._job)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return {**facts, "artifact_bytes": self._path.stat().st_size}

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns a session for the batch size."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._job.threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name(_BATCH, batch)
        options.log_severity_level = 3
        facts: Facts = {}
        with seconds(facts, "load_s"):
            session = onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])

        def run(x_f32: np.ndarray) -> np.ndarray:
            return session.run(None, {_INPUT: x_f32})[0]

        return run, facts


class OpenVinoEngine:
    """OpenVINO on the CPU, quantized by NNCF."""

    def __init__(self, job: Job) -> None:
        self._job, self._path = job, Path(job.folder, "openvino.xml")
        self._core: Any = None

    def build(self) -> Facts:
        """Writes the quantized model."""
        logging.disable(logging.WARNING)
        import nncf
        import openvino

        job = self._job
        facts: Facts = {}
        with seconds(facts, "build_s"), tempfile.TemporaryDirectory(dir=job.folder) as folder:
            exported = Path(folder, "float.onnx")
            _export_onnx(job, exported)
            images = list(_images(job))
            quantized = nncf.quantize(
                openvino.convert_model(str(exported)), nncf.Dataset(images), subset_size=len(images)
            )
            openvino.save_model(quantized, str(self._path), compress_to_fp16=False)
        size_bytes = self._path.stat().st_size + self._path.with_suffix(".bin").stat().st_size
        return {**facts, "artifact_bytes": size_bytes}

    def load(self, batch: int) -> tuple[Run, Facts]:
        """Returns an inference request of the model compiled for the batch size."""
        import openvino

        facts: Facts = {}
        with seconds(facts, "load_s"):
            self._core = self._core or openvino.Core()
            model = self._core.read_model(str(self._path))
            height, width = np.load(self._job.input_path, mmap_mode="r").shape[2:]
            model.reshape([batch, 3, height, width])
            hints = {"INFERENCE_NUM_THREADS": self._job.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
            request = self._core.compile_model(model, "CPU", hints).create_infer_request()

        def run(x_f32: np.ndarray) -> np.ndarray:
            return request.infer({0: x_f32}, share_inputs=True, share_outputs=True)[0]

        return run, facts
