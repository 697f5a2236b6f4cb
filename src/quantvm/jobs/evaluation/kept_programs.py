"""Quantized programs and weights as files of a run folder, and the digests by which they are known."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantvm.errors import OutputError
from quantvm.storage.digests import sha256_of
from quantvm.torch_compat import quiet
from quantvm.workload.program import Program
from quantvm.workload.runners import TorchRunner


class NotKeptError(Exception):
    """The quantized program cannot be written into a file that gives the same outputs."""


def kept_program(program: Program, folder: Path) -> tuple[dict[str, Any], Program]:
    """Writes a quantized program into a folder; returns what `program_of_row` needs, and the program as it is kept.

    A program that is a file of the user's own stays where it is: its digest is kept.

    Raises:
        NotKeptError: PyTorch can neither trace nor export it, or what is kept gives other outputs.
        OutputError: the folder cannot be written.
    """
    import torch

    if isinstance(program.value, (str, Path)):
        return {"file": None, "kind": program.kind, "sha256": digest_of_program(program)}, program
    images_f32 = np.random.default_rng(0).standard_normal((2, *_image_shape(program)), dtype=np.float32)
    with quiet(), torch.no_grad():
        # PyTorch's own quantized modules convert their scale to a number; recording it as a constant is intended
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        try:
            if program.kind == "exported":
                file = folder / "reference.pt2"
                torch.export.save(program.value, file)
                return _row_of_program(program, file), program
            file = folder / "reference.pt"
            traced = torch.jit.trace(program.value, torch.from_numpy(images_f32[:1].copy()), check_trace=False)
            traced.save(str(file))
            kept = replace(program, value=traced)
            before, after = (
                each.on_images(TorchRunner(each.value, threads=torch.get_num_threads())).run(images_f32)
                for each in (program, kept)
            )
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        except Exception as error:  # the model's own code is traced, and PyTorch raises many types
            raise NotKeptError(str(error).partition("\n")[0]) from error
    if not np.array_equal(before.view(np.uint32), after.view(np.uint32)):
        raise NotKeptError("PyTorch's recorded program gives other outputs than the module")
    return _row_of_program(program, file), kept


def program_of_row(row: Mapping[str, Any], folder: Path, own: Program | None) -> Program:
    """Returns the program that `kept_program` wrote.

    Args:
        row: what it returned.
        folder: where it wrote.
        own: the user's own program, for one that is a file of the user's.
    """
    if row["file"] is None:
        assert own is not None
        return own
    path: Any = folder / row["file"]
    if row["kind"] == "exported":
        from quantvm.frontend.exported.importer import load_program  # runs nothing of the file

        path = load_program(path)
    shapes = tuple(tuple(shape) for shape in row["shapes"])
    return Program(row["word"], row["kind"], path, shapes, row["shapes_are_given"], row["engine"])


def _row_of_program(program: Program, file: Path) -> dict[str, Any]:
    return {
        "file": file.name,
        "sha256": digest_of_file(file),
        "kind": "exported" if program.kind == "exported" else "torchscript",
        "word": program.word,
        "shapes": program.shapes,
        "shapes_are_given": program.shapes_are_given,
        "engine": program.engine,
    }


def _image_shape(program: Program) -> tuple[int, int, int]:
    size = program.image_size
    return 3, size, size


def digest_of_file(path: Path) -> str | None:
    """Returns the SHA-256 of a file; None if it cannot be read."""
    with suppress(OSError):
        return sha256_of(path)
    return None


def digest_of_weights(module: Any) -> str:
    """Returns the SHA-256 of all tensors of a module's state, with their names."""
    from quantvm.verification.kept import digest_of_state

    return digest_of_state(module)


def digest_of_program(program: Program) -> str | None:
    """Returns a digest of a quantized program with its weights; None if there is none."""
    if isinstance(program.value, (str, Path)):
        return digest_of_file(Path(program.value))
    from quantvm.frontend.source import Source
    from quantvm.verification.kept import digest_of_model

    return digest_of_model(Source(program.value, program.example_inputs, program.engine))
