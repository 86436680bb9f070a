"""The display of a grid: a table of its cells, and the progress while it runs."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jpeft.grid.scheduler import CellSchedule
from jpeft.grid.state import State
from jpeft.run.estimate import duration
from jpeft.run.lines import NowAndThen
from jpeft.words import counted

_COLOURS = {
    State.MISSING: "dim",
    State.RUNNING: "cyan",
    State.DONE: "green",
    State.FAILED: "red",
    State.STALE: "yellow",
}
_SECONDS_BETWEEN_LINES = 30.0  # a grid takes hours, and each line names every running cell


def cell_table(schedule: CellSchedule) -> Table:
    """A table of all cells of a grid with the state of each."""
    table = Table(title=_counts(schedule))
    for column in ("cell", "state", "", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for cell, seen in schedule.states.items():
        seconds = f"{seen.result.seconds['total']:,.0f}" if seen.result else ""
        table.add_row(cell.name, Text(seen.state, _COLOURS[seen.state]), Text(seen.detail), seconds)
    return table


@contextlib.contextmanager
def shown(schedule: CellSchedule, console: Console) -> Iterator[Callable[[], None]]:
    """Shows the schedule while it runs; yields the callback that updates the display."""
    started = time.monotonic()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda: live.update(_live_view(schedule, time.monotonic() - started))
        return

    def line() -> str:
        running = [f"{cell.name} {seen.detail}" for cell, seen in _running(schedule)]
        return "; ".join([_counts(schedule), _rate(schedule, time.monotonic() - started), *running])

    lines = NowAndThen(console, _SECONDS_BETWEEN_LINES)
    yield lambda: lines.print(line)


def _live_view(schedule: CellSchedule, seconds: float) -> Group:
    ended, total = schedule.progress()
    table = Table.grid(padding=(0, 2))
    for cell, seen in _running(schedule):
        table.add_row(Text(cell.name, "cyan"), Text(seen.detail))
    bar = ProgressBar(total=total, completed=ended, width=40)
    return Group(Text(f"{_counts(schedule)}; {_rate(schedule, seconds)}"), bar, table)


def _running(schedule: CellSchedule):
    return [(cell, seen) for cell, seen in schedule.states.items() if seen.state == State.RUNNING]


def _counts(schedule: CellSchedule) -> str:
    counts = schedule.counts()
    return f"{counted(len(schedule.cells), 'cell')}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n)


def _rate(schedule: CellSchedule, seconds: float) -> str:
    if not schedule.done:
        return "none done yet"
    each = seconds / len(schedule.done)
    left = (len(schedule.to_do()) + len(_running(schedule))) * each
    return f"{3600 / each:,.0f} cells an hour, about {duration(left)} left"
