"""The worker processes of a search, which run its cells on this machine."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from jpeft.errors import Stopped
from jpeft.grid.cells import Cell
from jpeft.grid.display import shown
from jpeft.grid.local import LocalPool, device_shares, shared_gpus_line
from jpeft.grid.scheduler import CellSchedule, CellsToDo
from jpeft.grid.state import CellState


class SearchWorkers:
    """Workers that live as long as the search; a context manager.

    Args:
      jobs: worker processes.
      lanes: cells that one process trains side by side.
      retry_failed: whether cells that failed earlier are run again.
      say: called with each line for the user.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        jobs: int,
        lanes: int,
        retry_failed: bool,
        console: Console,
        say: Callable[[str], None],
    ):
        shares = device_shares(jobs)
        if (line := shared_gpus_line(shares)) is not None:
            say(line)
        self._pool = LocalPool(shares, lanes=lanes)
        self._choice = CellsToDo(failed=retry_failed)
        self._workdir, self._console, self._say = workdir.absolute(), console, say

    def __enter__(self) -> "SearchWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def run_cells(self, cells: Sequence[Cell], epochs: int | None) -> Mapping[Cell, CellState]:
        """Runs the cells that are not done up to a number of epochs (None: to their ends); returns every state."""
        choice = dataclasses.replace(self._choice, pause_after=epochs)
        schedule = CellSchedule(cells, self._workdir, choice, report=self._say, done_line=_validation_line)
        try:
            with shown(schedule, self._console) as on_change:
                schedule.run(self._pool, on_change=on_change)
        except KeyboardInterrupt:
            self._say("stopping: the runs at work are saved first")
            raise Stopped("interrupted; the same command goes on from there") from None
        return schedule.states


def _validation_line(cell: Cell, seen: CellState) -> str:
    """The report of a finished cell: its validation loss, as test metrics are for the end of the search."""
    assert seen.result is not None, "the cell is done"
    return f"{cell.name}: validation loss {seen.result.validation_loss:.4f}"
