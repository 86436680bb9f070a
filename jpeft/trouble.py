"""Explanations of errors of the machine (memory, disk, devices): one line that says what a user can do."""

import errno
import os
from pathlib import Path

from jpeft.errors import RunFailed, UserError
from jpeft.words import clipped

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc", "Unable to allocate")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host or a device ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    # By class name, since some commands never import JAX. Only JAX's errors count: TensorStore reports a full disk as
    # RESOURCE_EXHAUSTED, too.
    is_from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_from_jax and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that a write failed for lack of space, or the like, and does not name the file."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL and error.filename is None


def explained(error: BaseException) -> UserError | RunFailed | None:
    """Returns an expected error with a one-line message for an error of the machine or of the call.

    Returns:
      `error` itself if it is expected already; None for an error that points to a bug in jpeft.
    """
    if isinstance(error, UserError | RunFailed):
        return error
    if out_of_memory(error):
        return RunFailed(
            f"there is too little memory ({first_line(error, 160)}); take less at once: a run with "
            "--config.model.remat=auto, --config.train.batch_size=auto and --config.eval.batch_size=auto takes what "
            "fits; else fewer rows, fewer tokens (--config.data.max_input_length), more devices or a smaller model. "
            "`jpeft plan` estimates what a run needs."
        )
    if isinstance(error, OSError):
        reason = error.strerror or first_line(error)
        return RunFailed(f"{_file_name(error.filename)}: {reason}." if error.filename is not None else f"{reason}.")
    text = str(error)
    if _raised_in(error) == "xla_bridge.py":  # where JAX selects a backend; the errors that it raises there differ
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = f" ({first_line(error, 200)})" if text else ""
        return UserError(
            f"JAX_PLATFORMS is {asked!r}, and JAX finds no such device here{said}; set this environment variable to "
            "cpu, or leave it out."
        )
    if isinstance(error, RuntimeError) and "determine home directory" in text:
        return UserError("a path begins with ~ and there is no such home directory; write the path in full.")
    if isinstance(error, ValueError) and "null byte" in text:
        return UserError("a path holds a NUL character, which no file name can hold; remove it.")
    return None


def _raised_in(error: BaseException) -> str:
    """Returns the name of the source file whose code raised an error; empty without a traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else Path(trace.tb_frame.f_code.co_filename).name


def first_line(error: BaseException, most: int = 300) -> str:
    """Returns the first line of an error's message, at most `most` characters; its type's name if it has no message."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:most]


def kind_and_first_line(error: BaseException, most: int = 300) -> str:
    """Returns an unexpected error's type and `first_line`: `ValueError: no such axis`."""
    kind, said = type(error).__name__, first_line(error, most)
    return kind if said == kind else f"{kind}: {said}"


def _file_name(name: object) -> str:
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return clipped(text, 200)


def is_within(name: object, directory: Path) -> bool:
    """Whether `name`, an error's `filename`, is a directory or a path inside it."""
    if not isinstance(name, str | Path):
        return False
    path = Path(name)
    return directory in (path, *path.parents) or directory.absolute() in (path.absolute(), *path.absolute().parents)
