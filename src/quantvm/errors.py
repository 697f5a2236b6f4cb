"""Errors that a user can act on, and the one kind that is a bug of ours.

Every message says what went wrong, where, what was got against what was expected, and what to do. The CLI prints a
``QuantvmError`` without a stack and exits 2. A failed check (parity or accuracy below the asked bound) is a result,
never an exception.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class QuantvmError(Exception):
    """Base of all errors that the user can act on."""


class InternalError(Exception):
    """A broken invariant of quantvm itself; shown with its stack."""


class ConfigError(QuantvmError, ValueError):
    """A wrong combination or value of options."""


class UnknownNameError(QuantvmError, LookupError):
    """A name that no registry knows; the message lists the known ones and the nearest match."""


class DataError(QuantvmError, ValueError):
    """Missing, corrupt or unlabelled images."""


class WeightsError(QuantvmError):
    """Weights that are missing, damaged or of another model."""


class DownloadError(QuantvmError, OSError):
    """A download that failed, was truncated or has another checksum than expected."""


class UnsupportedOpError(QuantvmError, NotImplementedError):
    """One or more operators that no converter knows; the message names all of them."""


class ModelImportError(QuantvmError, ValueError):
    """A program that is not a quantized model, or one whose quantization parameters make no sense."""


class ModelCodeError(QuantvmError, RuntimeError):
    """The user's own Python code, of which a model was to come, raised; the cause has its stack."""

    @classmethod
    def of(cls, what: str, while_: str, cause: BaseException) -> ModelCodeError:
        """Returns the error that names the place in the user's code."""
        frames = traceback.extract_tb(cause.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        return cls(f"{what}: {while_} raised {type(cause).__name__}: {cause}{where}")

    def stack(self) -> str:
        """Returns the stack of the user's code as Python prints it."""
        cause = self.__cause__ or self
        return "".join(traceback.format_exception(type(cause), cause, cause.__traceback__, chain=False))


class CompileError(QuantvmError, RuntimeError):
    """A target or option under which the module cannot be compiled."""


class ModelFileError(QuantvmError, ValueError):
    """A file that is no saved model, is damaged, or is of another version."""


class MachineError(QuantvmError, RuntimeError):
    """Compiled code that this machine cannot run."""


class MissingPackageError(QuantvmError, ImportError):
    """A package that is not installed where models are only run, and that all else needs."""


_NOT_NEEDED_TO_RUN = frozenset(
    ("PIL", "httpx", "platformdirs", "pyarrow", "rich", "tenacity", "torch", "torchvision", "typer")
)


@contextmanager
def missing_package_named() -> Iterator[None]:
    """Raises MissingPackageError where an import inside of the block fails for want of a dependency of quantvm."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in _NOT_NEEDED_TO_RUN:
            raise
        raise MissingPackageError(
            f"the package {name} is not installed; without it quantvm only loads and runs compiled models "
            "(quantvm.load). For all else: pip install quantvm, without --no-deps"
        ) from None
