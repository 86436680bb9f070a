"""The scheduler of a grid: it gives cells to workers until all are done."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.grid.cells import Cell
from jpeft.grid.pool import Event, Pool
from jpeft.grid.state import CellState, State, look, record_failure
from jpeft.grid.worker import Job
from jpeft.peft.methods import METHODS
from jpeft.run.stop import StopRequest
from jpeft.words import counted

_MOST_DEATHS = 3  # of workers that ran the same cell, after which the cell counts as failed
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclasses.dataclass(frozen=True)
class CellsToDo:
    """Which cells to run besides the missing ones, and how far.

    Attributes:
      failed: whether failed cells are run again.
      stale: whether cells whose directory holds work of another config are run again; that work is deleted.
      limit: the most cells to start; None for all.
      pause_after: epochs after which each cell is paused; None runs it to its end, test included.
    """

    failed: bool = False
    stale: bool = False
    limit: int | None = None
    pause_after: int | None = None


class CellSchedule:
    """The cells of a grid with their states.

    Args:
      choice: which cells are run.
      report: called with a line for the user when a cell ends.
      done_line: makes the line of a cell that is done.

    Attributes:
      states: by cell, as last read from its directory.
      done: cells that this scheduler's workers have finished.
      overheads: of each of these, seconds outside training, validation and test.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        workdir: Path,
        choice: CellsToDo,
        *,
        report: Callable[[str], None],
        done_line: Callable[[Cell, CellState], str] = lambda cell, seen: f"{cell.name}: {seen.detail}",
    ):
        self.cells, self._workdir, self._choice = cells, workdir, choice
        self._report, self._done_line = report, done_line
        self.states = {cell: look(cell, workdir) for cell in cells}
        self.done: list[Cell] = []
        self.overheads: list[float] = []
        self._left = float("inf") if choice.limit is None else choice.limit
        self._tried: set[Cell] = set()
        self._deaths: dict[Cell, int] = {}
        self._last: dict[int, Cell] = {}  # each worker's current or latest cell
        self._at_work: dict[int, Cell] = {}
        self._looked = time.monotonic()

    def run(self, pool: Pool, *, on_change: Callable[[], None] = lambda: None) -> None:
        """Runs every chosen cell, and waits for cells that other processes are running.

        Args:
          on_change: called often, to update a display.

        Raises:
          KeyboardInterrupt: on Ctrl-C or SIGTERM.
        """
        with StopRequest() as stop:
            while stop.signal is None:
                for worker in range(pool.size):
                    if worker not in self._at_work and (cell := self._next(worker, pool.lanes)) is not None:
                        self._begin(worker, cell, pool)
                on_change()
                if not self._at_work and not self._waits_for_others():
                    return
                for event in pool.wait(0.3):
                    self._end(event)
                self._look_again()
        raise KeyboardInterrupt

    def counts(self) -> dict[State, int]:
        """The number of cells in each state."""
        return {state: sum(seen.state == state for seen in self.states.values()) for state in State}

    def to_do(self) -> list[Cell]:
        """The cells that are still to be started."""
        ready = [cell for cell in self.cells if self._is_ready(cell)]
        return ready if self._left == float("inf") else ready[: int(self._left)]

    def progress(self) -> tuple[int, int]:
        """The number of cells that need nothing more of this call, and that number once the call has ended.

        Neither counts the cells that this call will not start, such as failed ones and those beyond the limit.
        """
        running = sum(seen.state == State.RUNNING for seen in self.states.values())
        ended = sum(self._has_ended(cell) for cell in self.cells)
        return ended, ended + running + len(self.to_do())

    def _has_ended(self, cell: Cell) -> bool:
        """Whether a cell is done, is paused where it is to be, or has been run by this scheduler."""
        state = self.states[cell].state
        if state == State.RUNNING or self._is_ready(cell):
            return False
        return state == State.DONE or cell in self._tried or self._waits(cell)

    def _is_ready(self, cell: Cell) -> bool:
        if cell in self._tried or cell in self._at_work.values():
            return False
        state = self.states[cell].state
        return (
            (state == State.MISSING and not self._waits(cell))
            or (state == State.FAILED and self._choice.failed)
            or (state == State.STALE and self._choice.stale)
        )

    def _waits(self, cell: Cell) -> bool:
        """Whether the cell is paused after at least `pause_after` epochs."""
        paused, asked = self.states[cell].paused, self._choice.pause_after
        return paused is not None and asked is not None and paused.epochs >= asked

    def _next(self, worker: int, lanes: int) -> Cell | None:
        """Chooses the cell that shares most with the worker's previous one, and least with those of other processes.

        If the worker's process is running other cells, only one that uses the same programs as these is chosen.
        """
        here = [at for at in self._at_work if at // lanes == worker // lanes]
        ready = [cell for cell in self.to_do() if all(_alike(cell, self._at_work[at]) for at in here)]
        if not ready:
            return None
        own = self._at_work[here[0]] if here else self._last.get(worker)
        others = [cell for at, cell in self._at_work.items() if at not in here]

        def distance(cell: Cell) -> tuple[int, int]:
            return -_shared(cell, own) if own else 0, max((_shared(cell, other) for other in others), default=0)

        return min(ready, key=distance)

    def _begin(self, worker: int, cell: Cell, pool: Pool) -> None:
        state = self.states[cell].state
        # A failed cell resumes from its checkpoint like any other, unless its files are damaged.
        overwrite = state == State.STALE or self.states[cell].damaged
        self._left -= 1
        self._at_work[worker] = self._last[worker] = cell
        self.states[cell] = CellState(State.RUNNING, "starting")
        directory = str(cell.directory(self._workdir))
        pool.submit(worker, Job(cell.run.to_dict(), directory, overwrite, pause_after=self._choice.pause_after))

    def _end(self, event: Event) -> None:
        cell = self._at_work.pop(event.worker, None)
        if cell is None:  # the worker died while idle
            return
        died = ""
        if event.outcome is None:
            died = self._died(cell, event.reason)
        elif event.outcome.status == "done":
            self._tried.add(cell)
            self.done.append(cell)
            self.overheads.append(event.outcome.overhead_seconds)
        elif event.outcome.status == "paused":
            self._tried.add(cell)
        elif event.outcome.status == "failed":
            self._tried.add(cell)
            self._report(f"{cell.name} failed: {event.outcome.error}")
        else:  # another process has the cell, or the worker was stopped: it does not count as started
            self._left += 1
        self.states[cell] = look(cell, self._workdir)
        error = event.outcome.error if event.outcome is not None and event.outcome.status == "failed" else died
        if error:  # the cell's directory may be missing or not writable, and then does not hold the error
            self.states[cell] = CellState(State.FAILED, error)
        paused = self.states[cell].paused
        if self.states[cell].state == State.DONE and cell in self.done:
            self._report(self._done_line(cell, self.states[cell]))
        elif paused is not None and self._waits(cell):
            lowest, epochs = min(paused.validation_losses), counted(paused.epochs, "epoch")
            self._report(f"{cell.name}: validation loss {lowest:.4f} after {epochs}")

    def _died(self, cell: Cell, reason: str) -> str:
        """Handles the death of a cell's worker; returns the cell's error, or "" if the cell is tried again."""
        self._left += 1
        self._deaths[cell] = self._deaths.get(cell, 0) + 1
        if self._deaths[cell] < _MOST_DEATHS:
            self._report(f"{cell.name}: {reason}; it goes back in the queue, and on from its last checkpoint")
            return ""
        self._tried.add(cell)
        error, directory = f"{reason}, {self._deaths[cell]} times", cell.directory(self._workdir)
        if (directory / "config.json").is_file():  # else the worker died before the directory was the cell's
            record_failure(directory, error)
        self._report(f"{cell.name} failed: {error}")
        return error

    def _waits_for_others(self) -> bool:
        return self._left > 0 and any(seen.state == State.RUNNING for seen in self.states.values())

    def _look_again(self) -> None:
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        for cell, seen in self.states.items():
            if seen.state == State.RUNNING:
                now = look(cell, self._workdir)
                if now.state == State.RUNNING or cell not in self._at_work.values():
                    self.states[cell] = now


def _alike(one: Cell, other: Cell) -> bool:
    """Whether two cells use the same programs and base, so that their calls can be combined."""
    own = METHODS[one.run.method.name]
    sizes = dict.fromkeys(own.padded_options)
    parts = [
        (cell.kinship, cell.run.model, dataclasses.replace(cell.run.method, **sizes), cell.run.mesh)
        for cell in (one, other)
    ]
    return not own.trains_base and parts[0] == parts[1]


def _shared(one: Cell, other: Cell) -> int:
    """How much one process can reuse from one cell for the next: 0 for nothing, 3 for all compiled programs."""
    pairs = list(zip(one.kinship, other.kinship, strict=True))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def median_overhead(schedule: CellSchedule) -> float | None:
    """The median of the cells' seconds outside training, validation and test; None if none is done."""
    return statistics.median(schedule.overheads) if schedule.overheads else None
