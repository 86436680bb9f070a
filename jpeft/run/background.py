"""Threads that write behind a run's back: Orbax's, TensorBoard's. They print tracebacks where one line is wanted.

What a thread fails at is raised again in the main thread when the checkpoint is waited for, or can be done without
(events), so nothing is lost with the noise. Only what a full disk or a damaged file causes is kept quiet.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jpeft.errors import Paused, RunFailed, Stopped, UserError
from jpeft.trouble import first_line, is_disk_full, is_within, out_of_memory

_DISK = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota exceeded", "File too large", "Read-only file system")
# When one read or write fails, Orbax closes the event loop of the others and TensorBoard its writer's queue: both then
# complain of that.
_AFTERMATH = ("Event loop is closed", "handle is closed")


def disk_trouble(error: BaseException) -> str | None:
    """Names what is wrong with the disk, such as that it is full; None if the error has another cause."""
    text = str(error)
    if not any(sign in text for sign in _DISK):
        return None
    return next(sign for sign in reversed(_DISK) if sign in text)


@contextlib.contextmanager
def explain_disk_trouble(workdir: Path) -> Iterator[None]:
    """Turns a full disk or a lost mount, whoever was writing to a run's directory, into the `RunFailed` that ends it.

    What is wrong with other files is said of them, by whoever catches it (`jpeft.trouble`).
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunFailed) or out_of_memory(error):
            raise
        reason = None
        if isinstance(error, OSError):
            if is_disk_full(error) or is_within(error.filename, workdir):
                reason = error.strerror or first_line(error)
        else:
            reason = disk_trouble(error)
        if reason is None:
            raise
        raise RunFailed(
            f"{workdir} cannot be written ({reason}); mend that and give the same command again: the run goes on from "
            "its last checkpoint."
        ) from None


class _QuietHooks:
    """The hooks of this process by which Python prints what threads fail at, but for what a run says by itself.

    They are the process's, and runs may overlap: the first run sets them, and the last puts back what was there.
    """

    def __init__(self) -> None:
        self._runs, self._changing = 0, threading.Lock()

    def enter(self) -> None:
        """Counts a run more."""
        with self._changing:
            self._runs += 1
            if self._runs == 1:
                asyncio_log = logging.getLogger("asyncio")
                self._before = threading.excepthook, sys.unraisablehook, asyncio_log.level
                threading.excepthook, sys.unraisablehook = map(self._unless_expected, self._before[:2])
                asyncio_log.setLevel(logging.CRITICAL)

    def leave(self) -> None:
        """Counts a run less."""
        with self._changing:
            self._runs -= 1
            if self._runs == 0:
                threading.excepthook, sys.unraisablehook, level = self._before
                logging.getLogger("asyncio").setLevel(level)

    @staticmethod
    def _unless_expected(hook: Callable[[Any], object]) -> Callable[[Any], None]:
        def hooked(arguments: Any) -> None:
            error = arguments.exc_value
            if error is None or (disk_trouble(error) is None and str(error) not in _AFTERMATH):
                hook(arguments)

        return hooked


_quiet = _QuietHooks()


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Keeps background threads from printing what the main thread will say in one line.

    After a failure they stay so: some complain only when the process ends. All else is still printed. A run that waits
    or was told to stop has not failed.
    """
    _quiet.enter()
    try:
        yield
    except (Paused, Stopped):
        _quiet.leave()
        raise
    _quiet.leave()
