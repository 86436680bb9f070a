"""Stop requests: SIGTERM and Ctrl-C end a run after the current step, once its state is saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from jpeft.errors import RunFailed, Stopped

_in_threads: "set[StopRequest]" = set()  # those entered in threads other than the main one


def ask_all(number: int) -> None:
    """Delivers a signal number to every run that is in a thread of its own, as a stop request."""
    for request in list(_in_threads):
        request.signal = number


class RunStopped(Stopped):
    """A run was asked to stop, and has saved its state.

    Attributes:
      state: what stopped the run, and where its state is saved.
    """

    def __init__(self, state: str, *, overwrite: bool = False):
        """Writes the message.

        Args:
          state: as the attribute.
          overwrite: whether the run was started with `--overwrite`, which would start it again from the beginning.
        """
        self.state = state
        super().__init__(f"{state}: {_command(overwrite)} goes on from there.")


@contextlib.contextmanager
def resumable(*, overwrite: bool) -> Iterator[None]:
    """Turns the `KeyboardInterrupt` of a run, whose state was not saved, into a `RunFailed` that says how to go on.

    That is Ctrl-C before or after training, and the second one while a step is computed.

    Args:
      overwrite: as in `RunStopped`.
    """
    try:
        yield
    except KeyboardInterrupt:
        # Before it the run that was to be replaced is back, and without --overwrite that one would be gone on with.
        otherwise = "; where it had none yet, give the same command again" if overwrite else ""
        raise RunFailed(f"interrupted; {_command(overwrite)} goes on from the last checkpoint{otherwise}.") from None


def _command(overwrite: bool) -> str:
    return "the same command, without --overwrite," if overwrite else "the same command"


class StopRequest:
    """Whether this process was asked to stop. While entered, SIGTERM and SIGINT set `signal` and do not end it.

    Signals only reach the main thread. For runs in other threads the owner of the process calls `ask_all`.
    """

    def __init__(self):
        self.signal: int | None = None
        self._waiting = False

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            _in_threads.add(self)
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        _in_threads.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def ends_waiting(self) -> Iterator[None]:
        """While entered, a stop request raises `KeyboardInterrupt` at once; for waits that may have no end."""
        self._waiting = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    def _ask(self, number: int, frame: object) -> None:
        asked_before, self.signal = self.signal is not None, number
        if asked_before or self._waiting:  # the second request does not wait for the step to end
            raise KeyboardInterrupt
