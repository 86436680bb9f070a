"""Being told to stop: SIGTERM and Ctrl-C end a run at the next step, after it is saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_elsewhere: "set[StopRequest]" = set()  # those entered in other threads than the main one


def ask_all(number: int) -> None:
    """Asks every run that is at work in a thread of its own to stop, as if that signal had reached it."""
    for request in list(_elsewhere):
        request.signal = number


class StopRequest:
    """Whether the process was asked to stop; while entered, SIGTERM and SIGINT ask instead of killing.

    In another thread than the main one no signal arrives: who owns the process hands it on by `ask_all`.
    """

    def __init__(self):
        self.signal: int | None = None
        self._waiting = False

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            _elsewhere.add(self)
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        _elsewhere.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def ends_waiting(self) -> Iterator[None]:
        """While entered, being asked raises `KeyboardInterrupt` at once: for a wait that may have no end."""
        self._waiting = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    def _ask(self, number: int, frame: object) -> None:
        asked_before, self.signal = self.signal is not None, number
        if asked_before or self._waiting:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
