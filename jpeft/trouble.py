"""What the machine says when it cannot, in the one line that a user can do something with."""

import errno
import os
from pathlib import Path

from jpeft.errors import RunFailed, UserError
from jpeft.words import clipped

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc", "Unable to allocate")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is what there was too little of, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    # By name: this module is for commands, too, that never load JAX. A full disk is RESOURCE_EXHAUSTED to TensorStore.
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return of_jax and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Whether the system refused to write and did not say where: what was being written is the place."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL and error.filename is None


def explained(error: BaseException) -> UserError | RunFailed | None:
    """The line for an error that comes of the machine or of the call; None for what is a defect of ours.

    Where it is about a file the line names it.
    """
    if isinstance(error, UserError | RunFailed):
        return error
    if out_of_memory(error):
        return RunFailed(
            f"there is too little memory ({first_line(error, 160)}); take less at once: a run with "
            "--config.model.remat=auto, --config.train.batch_size=auto and --config.eval.batch_size=auto takes what "
            "fits; else fewer rows, fewer tokens (--config.data.max_input_length), more devices or a smaller model. "
            "`jpeft plan` tells what a run needs."
        )
    if isinstance(error, OSError):
        reason = error.strerror or first_line(error)
        return RunFailed(f"{shown(error.filename)}: {reason}." if error.filename is not None else f"{reason}.")
    text = str(error)
    if _raised_in(error) == "xla_bridge.py":  # by JAX's choice of a device, which has several ways to fail
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = f" ({first_line(error, 200)})" if text else ""
        return UserError(
            f"JAX_PLATFORMS is {asked!r}, and JAX finds no such device here{said}; set this environment variable to "
            "cpu, or leave it out."
        )
    if isinstance(error, RuntimeError) and "determine home directory" in text:
        return UserError("a path begins with ~ and there is no such home directory; write the path in full.")
    if isinstance(error, ValueError) and "null byte" in text:
        return UserError("a path holds a NUL character, which no file's name can.")
    return None


def _raised_in(error: BaseException) -> str:
    """Name of the file of the code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else Path(trace.tb_frame.f_code.co_filename).name


def first_line(error: BaseException, most: int = 300) -> str:
    """The beginning of what an error says, or its kind where it says nothing."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:most]


def kind_and_first_line(error: BaseException, most: int = 300) -> str:
    """`ValueError: no such axis`: of an error that nobody here knows, its kind before what it says."""
    kind, said = type(error).__name__, first_line(error, most)
    return kind if said == kind else f"{kind}: {said}"


def shown(name: object) -> str:
    """A file's name as a message can hold it."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return clipped(text, 200)


def is_within(name: object, directory: Path) -> bool:
    """Whether a file that an error names lies in a directory, or is it."""
    if not isinstance(name, str | Path):
        return False
    path = Path(name)
    return directory in (path, *path.parents) or directory.absolute() in (path.absolute(), *path.absolute().parents)
