"""Errors that a user can act on, and the one kind that is a bug of ours.

Every message says what went wrong, where, what was got, what was expected, and what to do. The CLI prints a
``QuantvmError`` without a stack and exits 2. A failed check (parity or accuracy below the asked bound) is a result,
never an exception. An unexpected exception becomes a ``QuantvmError`` at the boundary of its stage (``stage``), with
the exception itself as the cause.
"""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class QuantvmError(Exception):
    """Base of all errors that the user can act on.

    Attributes:
        is_unexpected: whether `stage` made it from an unexpected exception, whose stack belongs in a bug report.
    """

    is_unexpected = False

    def __str__(self) -> str:
        """Returns the message; bytes of file names that are not UTF-8 are escaped, so it can be written anywhere."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


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
    """The user's own Python code raised while it made a model; the cause has its stack."""

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


class OutputError(QuantvmError, OSError):
    """A result or a temporary file that cannot be written: a full disk, a closed stdout. The command exits with 4."""


class MachineError(QuantvmError, RuntimeError):
    """Compiled code that this machine cannot run."""


class RunError(QuantvmError, RuntimeError):
    """Compiled code that stopped on its inputs."""


class VerificationError(QuantvmError, RuntimeError):
    """Compiled code whose outputs are not those of the model's reference; the message names the first difference."""


class MissingPackageError(QuantvmError, ImportError):
    """A package is missing. Running compiled models does not need it, everything else does."""


_NOT_NEEDED_TO_RUN = frozenset(
    ("PIL", "httpx", "platformdirs", "pyarrow", "rich", "tenacity", "torch", "torchvision", "typer")
)


@contextmanager
def missing_package_named() -> Iterator[None]:
    """Raises MissingPackageError if an import inside the block fails because a dependency of quantvm is missing."""
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


INPUTS_MISFIT = "the inputs do not fit the model: "
"""How messages of checks in the compiled code begin."""
_LOG = logging.getLogger("quantvm")
_PLACE = "quantvm_place"
_MOST_TOLD = 400
STATIC_MAY_HELP = "with batch='static' (--batch static), for as many images as the example holds, it may work"
"""The remedy of stages that a symbolic batch makes harder."""


@contextmanager
def stage(doing: str, kind: type[QuantvmError], remedy: str = "") -> Iterator[None]:
    """Turns an unexpected exception in the block into an error of the given kind.

    The error names the stage, the part of the model that was processed (`part`), and what to do. The exception is its
    cause, and its stack goes to the log `quantvm` at level DEBUG. Our own errors pass unchanged, and so do
    MemoryError, an interruption, and a package that is not installed.

    Args:
        doing: the stage, as "importing the model".
        kind: the error that callers of the stage expect.
        remedy: what may help besides a report, as the second half of a sentence.
    """
    try:
        yield
    except (QuantvmError, InternalError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _NOT_NEEDED_TO_RUN:
            raise
        place = getattr(error, _PLACE, None)
        made = kind(
            f"{doing} failed{f' at {place}' if place else ''}: {gist(error)}. quantvm did not expect this"
            f"{f'; {remedy}' if remedy else ''}. Please report it with the model, the command and the stack"
        )
        made.is_unexpected = True
        _LOG.debug("%s", made, exc_info=error)
        raise made from error


@contextmanager
def part(name: str | Callable[[], str]) -> Iterator[None]:
    """Notes on an unexpected exception which part of the model was processed, for the message of `stage`."""
    try:
        yield
    except QuantvmError:
        raise
    except Exception as error:
        if not hasattr(error, _PLACE):
            setattr(error, _PLACE, name if isinstance(name, str) else name())
        raise


def is_output_failure(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is a failed write, such as to a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutputError) or (isinstance(cause, OSError) and cause.errno in _FAILED_WRITES):
            return True
        cause = cause.__cause__
    return False


_FAILED_WRITES = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE, errno.EIO))


def listed(problems: Sequence[str], most: int = 8) -> str:
    """Returns the first of several problems for a message, and how many there are in all."""
    return "; ".join(problems[:most]) + (f"; {len(problems)} in all" if len(problems) > most else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of a foreign exception's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Returns the last line of a foreign exception's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def gist(error: BaseException) -> str:
    """Returns the most informative line of a foreign exception, with its type where that line alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    important = [line for line in lines if "Error" in line or "expected" in line.lower()]
    told = (important or lines or [""])[-1].removesuffix(".")
    told = told if len(told) <= _MOST_TOLD else f"{told[:_MOST_TOLD]} ..."
    is_sentence = isinstance(error, (RuntimeError, ValueError, OSError)) and " " in told
    return told if is_sentence else f"{type(error).__name__}: {told}" if told else type(error).__name__
