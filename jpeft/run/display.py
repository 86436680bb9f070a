"""Shows the progress of a run: a progress bar on a terminal, otherwise a line every few seconds."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jpeft.run.estimate import duration
from jpeft.run.lines import NowAndThen, print_line


class Bar:
    """The progress of one task, with rate and time left."""

    def __init__(
        self,
        console: Console,
        progress: Progress,
        name: str,
        total: int,
        done: int,
        note: str,
        unit: str,
        compiled: Callable[[], float],
    ):
        self._progress, self._unit, self._compiled = progress, unit, compiled
        self._name, self._total, self._done, self._done_before = name, total, done, done
        self._started, self._lines = time.monotonic(), NowAndThen(console)
        self._compiled_before = compiled()
        self._bar = progress.add_task(name, total=total, completed=done, note=note, left="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Adds `amount` to the progress; `note` is shown beside the rate."""
        self._done += amount
        # Compilation happens once: counting it would make the first estimate several times too long.
        worked = time.monotonic() - self._started - (self._compiled() - self._compiled_before)
        rate = (self._done - self._done_before) / max(worked, 1e-9)
        left = duration((self._total - self._done) / max(rate, 1e-9)) if rate else ""
        note = f"{note}  {rate:,.1f} {self._unit}/s".strip()
        self._progress.update(self._bar, completed=self._done, note=note, left=f"{left} left" if left else "")
        self._lines.print(
            lambda: f"{self._name}: {self._done:,}/{self._total:,}  {note}" + (f"  {left} left" if left else "")
        )


class Display:
    """Prints to standard error, so that standard output holds results only."""

    def __init__(self, *, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, line: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        print_line(self._console, line)

    @contextlib.contextmanager
    def task(
        self,
        name: str,
        total: int,
        done: int = 0,
        note: str = "",
        unit: str = "examples",
        compiled: Callable[[], float] = lambda: 0.0,
    ) -> Iterator[Bar]:
        """Shows the progress of a task while the block runs.

        Args:
          name: of the task.
          total: units of work.
          done: units that were done before.
          note: shown beside the bar until the first `advance`.
          unit: name of the units, for the rate.
          compiled: returns the seconds spent compiling so far, which are left out of the rate and of the time left.
        """
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        with progress:
            yield Bar(self._console, progress, name, total, done, note, unit, compiled)
