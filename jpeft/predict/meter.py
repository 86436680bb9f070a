"""The progress of `jpeft predict` on standard error: a bar on a terminal, otherwise a line now and then."""

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jpeft.run.lines import NowAndThen, print_line
from jpeft.words import counted

_SECONDS_BEFORE_BAR = 2.0


class Meter:
    """A context manager that shows the rate and, if the input's size is known, the share of it that is answered."""

    def __init__(self, total_bytes: int | None, *, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._progress = Progress(
            TextColumn("{task.fields[note]}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            # Answers that are printed on the terminal show the progress themselves.
            disable=not self._console.is_terminal or (sys.stdout is not None and sys.stdout.isatty()),
            redirect_stdout=False,  # standard output is for the answers
        )
        self._task = self._progress.add_task("", total=total_bytes, note="loading")
        self._timer = threading.Timer(_SECONDS_BEFORE_BAR, self._progress.start)
        self._timer.daemon = True
        self._rows = self._answered = 0
        self._started: float | None = None
        self._lines = NowAndThen(self._console)

    def __enter__(self) -> "Meter":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._progress.stop()

    def begins(self) -> None:
        """Starts the clock of the rate."""
        self._started = self._started or time.monotonic()

    def advance(self, rows: int, size: int | float, *, answered: bool = True) -> None:
        """Adds rows and bytes of the input, `answered` now or by an earlier call."""
        self._rows += rows
        self._answered += rows if answered else 0
        note = counted(self._rows, "row")
        if self._started is not None:
            note += f", {self._answered / max(time.monotonic() - self._started, 1e-9):,.1f} a second"
        self._progress.update(self._task, advance=size, note=note)
        self._lines.print(lambda: note)

    def say(self, line: str) -> None:
        """Prints a line to standard error, above the bar if there is one."""
        print_line(self._console, line)
