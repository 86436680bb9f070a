"""Being told to stop: SIGTERM and Ctrl-C end a run at the next step, after it is saved."""

import contextlib
import signal


class StopRequest:
    """Whether the process was asked to stop; while entered, SIGTERM and SIGINT ask instead of killing."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {}
        with contextlib.suppress(ValueError):  # not the main thread: whoever owns the process handles its signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        self.signal = number
