"""Plain lines on a console: messages, and progress where there is no terminal for a bar."""

import time
from collections.abc import Callable

from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Prints a line without markup, above the progress bar if there is one."""
    console.print(line, markup=False, soft_wrap=True)


class NowAndThen:
    """Prints progress lines at a limited rate, on a console that is no terminal.

    Args:
      seconds: least time before the first line and between two lines. The default soon shows that work proceeds, and
        limits the log to 240 lines per hour.
    """

    def __init__(self, console: Console, seconds: float = 15.0):
        self._console, self._seconds, self._printed = console, seconds, time.monotonic()

    def print(self, line: Callable[[], str]) -> None:
        """Prints the line unless the last one was too recent; `line` is called only if it is printed."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed > self._seconds:
            self._printed = now
            print_line(self._console, line())
