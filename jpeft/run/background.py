"""Errors of background threads (Orbax's, TensorBoard's): one line instead of tracebacks.

An error of such a thread is raised again in the main thread when it waits for the checkpoint, or does not matter
(TensorBoard events), so hiding its traceback loses nothing. Only errors caused by a full disk or a damaged file are
hidden.
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
_LOGGERS = ("asyncio", "absl")  # Orbax logs each save through absl, and each failure at length
# After one failed read or write Orbax closes the event loop, and TensorBoard the queue, that other threads still use.
_CONSEQUENCES = ("Event loop is closed", "handle is closed")


def disk_trouble(error: BaseException) -> str | None:
    """Returns what is wrong with the disk, such as that it is full; None if the error has another cause."""
    text = str(error)
    if not any(sign in text for sign in _DISK):
        return None
    return next(sign for sign in reversed(_DISK) if sign in text)


@contextlib.contextmanager
def explain_disk_trouble(workdir: Path) -> Iterator[None]:
    """Turns a full disk or a lost mount under a run's directory into a one-line `RunFailed`.

    Errors about other files pass through, and are explained where they are caught (`jpeft.trouble`).
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
            f"{workdir} cannot be written ({reason}); solve this and give the same command again: the run goes on "
            "from its last checkpoint."
        ) from None


class _QuietHooks:
    """Hides errors of threads that a run reports itself, by the hooks and log levels of this process.

    Runs of a process may overlap: the first one installs the hooks, and the last one restores the originals.
    """

    def __init__(self) -> None:
        self._runs, self._changing = 0, threading.Lock()

    def enter(self) -> None:
        """Registers a run."""
        with self._changing:
            self._runs += 1
            if self._runs == 1:
                self._hooks_before = threading.excepthook, sys.unraisablehook
                threading.excepthook, sys.unraisablehook = map(self._unless_expected, self._hooks_before)
                self._levels_before = {name: logging.getLogger(name).level for name in _LOGGERS}
                for name in _LOGGERS:
                    logging.getLogger(name).setLevel(logging.CRITICAL)

    def leave(self) -> None:
        """Unregisters a run."""
        with self._changing:
            self._runs -= 1
            if self._runs == 0:
                threading.excepthook, sys.unraisablehook = self._hooks_before
                for name, level in self._levels_before.items():
                    logging.getLogger(name).setLevel(level)

    @staticmethod
    def _unless_expected(hook: Callable[[Any], object]) -> Callable[[Any], None]:
        def hooked(arguments: Any) -> None:
            error = arguments.exc_value
            if error is None or (disk_trouble(error) is None and str(error) not in _CONSEQUENCES):
                hook(arguments)

        return hooked


_quiet = _QuietHooks()


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Hides tracebacks of background threads for errors that the main thread reports in one line.

    After a failure the hooks stay, since some threads complain only when the process ends. A run that paused or was
    asked to stop has not failed.
    """
    _quiet.enter()
    try:
        yield
    except (Paused, Stopped):
        _quiet.leave()
        raise
    _quiet.leave()
