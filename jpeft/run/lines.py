"""Lines on a console: a message, and how far work is where there is no terminal for a bar."""

import time
from collections.abc import Callable

from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Prints a line as it is, brackets and all, above the bar where there is one."""
    console.print(line, markup=False, soft_wrap=True)


class NowAndThen:
    """Prints on a console that is no terminal how far some work is, with a time between two lines.

    Args:
      seconds: least time from the beginning, or from a line, to the next. By default what shows soon that work goes on
        and keeps the log of an hour at 240 lines.
    """

    def __init__(self, console: Console, seconds: float = 15.0):
        self._console, self._seconds, self._printed = console, seconds, time.monotonic()

    def print(self, line: Callable[[], str]) -> None:
        """Prints the line, which is made only then, unless it is too early for one."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed > self._seconds:
            self._printed = now
            print_line(self._console, line())
