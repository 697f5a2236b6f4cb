"""The manifest of a model file: a JSON object, checked field by field when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from quantvm.errors import ModelFileError
from quantvm.numerics.torch_engines import QuantParams
from quantvm.structure import checked

from .artifact import CompileReport
from .requirements import Requirements
from .signature import Signature, TensorSpec
from .verdict import VERDICTS, Verification

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Version 2 has no symbols of dimensions, no structure of outputs, and no verdict on the code."""
FORMAT = "quantvm model"
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A file within the model file.

    Attributes:
        size_bytes: its exact length.
        sha256: 64 lower-case hexadecimal digits.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a model file says about its model.

    Attributes:
        versions: of quantvm and tvm when it was written.
        requirements: what the code needs of a machine.
        signature: inputs and outputs.
        report: how it was compiled.
        library: the compiled code.
    """

    versions: dict[str, str]
    requirements: Requirements
    signature: Signature
    report: CompileReport
    library: Member

    def to_json(self) -> bytes:
        """Returns the manifest as it is stored."""
        report = dataclasses.asdict(self.report)
        for fact_of_a_process in ("import_s", "compile_s", "cached", "load_s"):  # equal models are equal files
            del report[fact_of_a_process]
        content = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "versions": self.versions,
            "requirements": dataclasses.asdict(self.requirements),
            "inputs": [dataclasses.asdict(spec) for spec in self.signature.inputs],
            "outputs": [dataclasses.asdict(spec) for spec in self.signature.outputs],
            "structure": self.signature.structure,
            "report": report,
            "library": dataclasses.asdict(self.library),
        }
        return (json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n").encode()


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Returns the manifest of a model file.

    Args:
        raw: what is stored.
        where: names the file in messages.

    Raises:
        ModelFileError: it is no manifest, has another schema version, or a field is missing or invalid.
    """
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: the manifest is not JSON ({error}); the file is damaged") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelFileError(f"{where}: the manifest is not that of a quantvm model")
    version = content.get("schema_version")
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise ModelFileError(
            f"{where} has schema version {version!r}, and this quantvm reads {readable}; compile the model again"
        )
    try:
        manifest = Manifest(
            versions=_Fields(content, "").mapping("versions", str),
            requirements=_requirements(_Fields(content, "").object("requirements")),
            signature=_signature(content),
            report=_report(_Fields(content, "").object("report"), version),
            library=_member(_Fields(content, "").object("library")),
        )
        written = _Fields(content, "").value("sha256", str, _is_digest)
    except (ValueError, OverflowError) as error:
        raise ModelFileError(f"{where}: the manifest's {error}; the file is damaged") from error
    if written != _digest(content):
        raise ModelFileError(f"{where} is damaged: its manifest was changed after it was written")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    """Returns the SHA-256 of all other fields of a manifest, however they are laid out and ordered."""
    others = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


class _Fields:
    """The fields of one JSON object; a ValueError names a field that is wrong."""

    def __init__(self, content: dict[str, Any], path: str) -> None:
        self._content, self._path = content, path

    def _fail(self, name: str, expected: str) -> ValueError:
        value = self._content.get(name)
        got = "nothing" if name not in self._content else repr(value)[:60]
        return ValueError(f"{self._path}{name} is {got}, expected {expected}")

    def value(self, name: str, kind: type[T], accept: Callable[[Any], bool] = lambda _: True) -> T:
        """Returns the field, which must be of the kind (an int counts as float, a bool as neither)."""
        value = self._content.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not accept(value):
            raise self._fail(name, f"{kind.__name__} that makes sense")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """Returns the field, which may be null but not missing."""
        if name in self._content and self._content[name] is None:
            return None
        return self.value(name, kind)

    def items(self, name: str, kind: type[T]) -> tuple[T, ...]:
        """Returns a list, all of one kind."""
        values = self.value(name, list)
        if not all(isinstance(v, kind) for v in values):
            raise self._fail(name, f"a list of {kind.__name__}")
        return tuple(values)

    def mapping(self, name: str, kind: type[T]) -> dict[str, T]:
        """Returns an object whose values are all of one kind."""
        values = self.value(name, dict)
        if not all(isinstance(v, kind) for v in values.values()):
            raise self._fail(name, f"an object of {kind.__name__}")
        return values

    def object(self, name: str) -> _Fields:
        """Returns the fields of an object."""
        return _Fields(self.value(name, dict), f"{self._path}{name}.")

    def objects(self, name: str) -> list[_Fields]:
        """Returns the fields of each object of a list that is not empty."""
        values = self.items(name, dict)
        if not values:
            raise self._fail(name, "at least one")
        return [_Fields(value, f"{self._path}{name}[{i}].") for i, value in enumerate(values)]

    def symbols(self, name: str, rank: int) -> tuple[str | None, ...]:
        """Returns the names of dimensions, null for known sizes; the field is empty or missing if none is needed."""
        values = self.value(name, list) if name in self._content else []
        if len(values) not in (0, rank) or not all(v is None or isinstance(v, str) for v in values):
            raise self._fail(name, "names of dimensions")
        return tuple(values)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Returns a shape: dimensions of at least 1, null where one is dynamic."""
        values = self.value(name, list)
        if not all(v is None or (type(v) is int and v > 0) for v in values):
            raise self._fail(name, "a shape")
        return tuple(values)


def _signature(content: dict[str, Any]) -> Signature:
    fields = _Fields(content, "")
    inputs = tuple(_tensor_spec(spec) for spec in fields.objects("inputs"))
    outputs = tuple(_tensor_spec(spec) for spec in fields.objects("outputs"))
    structure = content.get("structure")
    return Signature(inputs, outputs, None if structure is None else checked(structure, len(outputs)))


def _tensor_spec(fields: _Fields) -> TensorSpec:
    quantization = None
    if fields.optional("quantization", dict) is not None:
        params = fields.object("quantization")
        quantization = QuantParams(
            params.value("scale", float),
            params.value("zero_point", int),
            params.value("dtype", str),  # type: ignore[arg-type]  # it checks its fields
        )
    shape = fields.shape("shape")
    return TensorSpec(
        fields.value("name", str),
        shape,
        fields.value("dtype", str),
        quantization,
        fields.symbols("symbols", len(shape)),
    )


def _requirements(fields: _Fields) -> Requirements:
    return Requirements(fields.value("architecture", str), fields.items("cpu_features", str))


def _member(fields: _Fields) -> Member:
    return Member(
        fields.value("size_bytes", int, lambda size: size > 0),
        fields.value("sha256", str, _is_digest),
    )


def _report(fields: _Fields, schema_version: int) -> CompileReport:
    return CompileReport(
        import_s=None,
        compile_s=None,
        int8_mac_share=fields.value("int8_mac_share", float, lambda share: 0 <= share <= 1),
        float_ops=fields.items("float_ops", str),
        target=fields.value("target", str),
        kernels=fields.mapping("kernels", int),
        engine=fields.value("engine", str),
        numerics=fields.value("numerics", str),
        threads=fields.value("threads", int, lambda count: count > 0),
        output_scale=fields.optional("output_scale", float),
        float_reasons=fields.items("float_reasons", str),
        verification=(
            Verification("not run", "the file was written by an earlier version of quantvm")
            if schema_version == READABLE_VERSIONS[0]
            else _verification(fields.object("verification"))
        ),
    )


def _verification(fields: _Fields) -> Verification:
    return Verification(
        verdict=fields.value("verdict", str, lambda verdict: verdict in VERDICTS),  # type: ignore[arg-type]  # checked
        reason=fields.value("reason", str),
        reference=fields.optional("reference", str),
        batch_sizes=fields.items("batch_sizes", int),
        n_compared=fields.value("n_compared", int, lambda n: n >= 0),
        n_different=fields.value("n_different", int, lambda n: n >= 0),
        max_difference=fields.value("max_difference", float),
    )
