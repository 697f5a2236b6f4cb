"""A compiled model as one file: an uncompressed zip of `manifest.json` and the shared library `model.so`.

Whoever loads a model runs its code, as with any shared library: the checks here find damage and mistakes, not malice.
Loading needs neither torch nor TVM's compiler.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import struct
import threading
import time
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from quantvm.errors import MachineError, ModelFileError, OutputError
from quantvm.storage.output_files import file_problem, replacing
from quantvm.storage.regular_files import checked_path, open_regular
from quantvm.storage.scratch import forbids_programs, room_advice, scratch_folder

from .artifact import Artifact
from .manifest import Manifest, Member, parse_manifest

_MANIFEST, _LIBRARY = "manifest.json", "model.so"
_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the least that a zip can say: equal models are equal files
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError,
           LookupError, ArithmeticError, TypeError, AttributeError)  # fmt: skip
"""What Python's zipfile raises for files that are damaged: anything but OSError."""


def load(path: str | os.PathLike[str]) -> Artifact:
    """Returns a model that `Artifact.save` wrote, ready to run. Neither torch nor TVM's compiler is needed.

    Load only files that you trust: a model holds machine code.

    Raises:
        ModelFileError: the file is missing, no model, damaged, or of another version of quantvm or TVM.
        MachineError: it was compiled for a processor that can do more than this one.
        OutputError: it cannot be unpacked into the folder for temporary files.
    """
    import quantvm.tvm_compat  # noqa: F401 - the time of importing tvm is not that of loading a model

    path = checked_path(path, ModelFileError, "the path of a model file")
    start_s = time.perf_counter()
    artifact = open_model_file(path)
    try:
        artifact.prepare()
    except MachineError as error:
        raise MachineError(f"{path}: {error}") from error
    artifact.report = dataclasses.replace(artifact.report, load_s=time.perf_counter() - start_s)
    return artifact


def open_model_file(path: Path) -> Artifact:
    """Returns a saved model; only its manifest has been read.

    Raises:
        ModelFileError: see `load`.
    """
    manifest = read_manifest(path)
    _check_version(manifest, path)
    return Artifact(SavedLibrary(path, manifest.library), manifest.signature, manifest.report, manifest.requirements)


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of a model file, for whatever machine the model was compiled.

    Raises:
        ModelFileError: the file is missing, no model, or damaged.
    """
    with _opened(path) as file, _as_zip(file, path) as archive:
        members = _members(archive, path)
        if members[_MANIFEST].file_size > _MAX_MANIFEST_BYTES:
            raise ModelFileError(f"{path}: the manifest is greater than {_MAX_MANIFEST_BYTES:,} bytes")
        try:
            raw = archive.read(members[_MANIFEST])
        except (*_BROKEN, OSError) as error:
            raise ModelFileError(f"{path} is damaged: {error}") from error
        manifest = parse_manifest(raw, str(path))
        got, expected = members[_LIBRARY].file_size, manifest.library.size_bytes
        if got != expected:
            raise ModelFileError(f"{path} is damaged: its library has {got:,} bytes, expected {expected:,}")
        return manifest


def write_model_file(artifact: Artifact, path: Path) -> Path:
    """Writes a compiled model to a file, atomically; returns its path. Equal models are equal files.

    Raises:
        CompileError: there is no C++ linker, or it fails.
        OutputError: the file cannot be written; only regular files are replaced.
    """
    problem = file_problem(path)
    if problem is not None:
        raise OutputError(f"cannot write {path}: {problem}")
    with scratch_folder("save") as folder:
        library = folder / _LIBRARY
        artifact.library.write(library)
        with library.open("rb") as file:
            digest = _copied(file, None)
        manifest = Manifest(
            versions=_versions(),
            requirements=artifact.requirements,
            signature=artifact.signature,
            report=artifact.report,
            library=Member(library.stat().st_size, digest),
        )

        with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_info(_MANIFEST), manifest.to_json())
            with library.open("rb") as source, archive.open(_info(_LIBRARY), "w", force_zip64=True) as member:
                shutil.copyfileobj(source, member, _CHUNK_BYTES)
    return path


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _LONG_AGO)
    info.external_attr = 0o644 << 16
    return info


class SavedLibrary:
    """The code in a model file. The file is kept open, so that it may be replaced or removed.

    Args:
        path: of the model file.
        member: size and digest that the library must have.
    """

    def __init__(self, path: Path, member: Member) -> None:
        self._path, self._member, self._file = path, member, _opened(path)
        self._reading = threading.Lock()
        self._vm: Any = None

    def start(self) -> Any:
        """Returns the model's main function; the library is loaded only if all of its bytes are right."""
        from quantvm.tvm_compat import load_library, start_vm

        with scratch_folder("load") as folder:
            library = folder / _LIBRARY
            self.write(library)
            try:
                module = load_library(library)
            except OSError as error:
                kind = OutputError if forbids_programs(folder) else ModelFileError
                raise kind(
                    f"{self._path}: the system cannot load its code from {folder}: {error}; where that folder may hold "
                    "no programs, name another by the environment variable TMPDIR"
                ) from error
        self._vm = start_vm(module)
        return self._vm["main"]

    def write(self, path: Path) -> None:
        """Writes the checked library."""
        with self._reading, _as_zip(self._file, self._path) as archive:
            info = _members(archive, self._path)[_LIBRARY]
            try:
                with archive.open(info) as source, path.open("xb") as target:
                    digest = _copied(source, target)
            except _BROKEN as error:
                raise ModelFileError(f"{self._path} is damaged: {error}") from error
            except OSError as error:
                raise OutputError(
                    f"{self._path}: cannot unpack to {path}: {error.strerror or error}; {room_advice(path.parent)}"
                ) from error
        if digest != self._member.sha256:
            raise ModelFileError(
                f"{self._path} is damaged: its library has sha256 {digest}, expected {self._member.sha256}"
            )

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()


def _copied(source: IO[bytes], target: IO[bytes] | None) -> str:
    """Copies a stream to a file, if there is one; returns the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def _opened(path: Path) -> IO[bytes]:
    return open_regular(path, ModelFileError)


def _as_zip(file: IO[bytes], path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (*_BROKEN, OSError) as error:
        reason = "it has no ZIP directory at its end" if isinstance(error, zipfile.BadZipFile) else error
        raise ModelFileError(
            f"{path} is no model file of quantvm, or a damaged one: {reason}; expected what `quantvm compile -o` or "
            "Artifact.save writes"
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the two members by name. Others are refused, so no name is ever used as a path."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if sorted(names) != [_MANIFEST, _LIBRARY]:
        hint = ""
        if any(name.endswith((".pkl", "/version", ".data/version")) for name in names):
            hint = "; a TorchScript file is first compiled: quantvm compile FILE.pt -o FILE.qvm"
        held = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        expected = f"expected {_MANIFEST} and {_LIBRARY}"
        raise ModelFileError(f"{path} is no model file of quantvm: it holds {held or 'nothing'}, {expected}{hint}")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise ModelFileError(f"{path}: {info.filename} is compressed or encrypted, expected plain bytes")
    return {info.filename: info for info in infos}


def _versions() -> dict[str, str]:
    from quantvm.tvm_compat import tvm_version

    return {"quantvm": metadata.version("quantvm"), "tvm": tvm_version()}


def _check_version(manifest: Manifest, path: Path) -> None:
    """Raises an error for code of another minor version of TVM, which may be incompatible."""
    from quantvm.tvm_compat import tvm_version

    written, here = manifest.versions.get("tvm", "unknown"), tvm_version()
    if written.split(".")[:2] != here.split(".")[:2]:
        raise ModelFileError(f"{path} was compiled with TVM {written}, and this is TVM {here}; compile the model again")
