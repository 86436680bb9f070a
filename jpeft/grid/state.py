"""The state of a cell, as read from its directory.

The cells' directories are the only record of a grid, so several commands, on several machines, may work on one at once.
"""

import contextlib
import dataclasses
import datetime
import enum
import json
import traceback
from pathlib import Path
from typing import Any

from jpeft.config import of_any_version
from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object, write_whole
from jpeft.grid.cells import Cell
from jpeft.results import NotARecord, PausedRecord, RunRecord
from jpeft.run.directory import PAUSE_FILE, has_work, is_claimed, what_differs
from jpeft.train.loop import digest_of_rows
from jpeft.train.origins import origins
from jpeft.trouble import kind_and_first_line
from jpeft.words import counted, the_first

FAILURE_FILE = "failure.json"
PROGRESS_FILE = "progress.json"
LOG_FILE = "log.txt"
_LONGEST_DETAIL = 500


class State(enum.StrEnum):
    """The state of a cell; `look` reads it from the cell's directory and says what each means."""

    MISSING = "missing"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STALE = "stale"


@dataclasses.dataclass(frozen=True)
class CellState:
    """A cell's state with its details.

    Attributes:
      detail: for the user: the metric of a done cell, the progress of a running one, the error of a failed one, the
        config keys that differ in a stale one.
      result: the record of a done cell.
      paused: the record of a missing cell that is paused after some epochs.
      damaged: whether a failed cell has damaged files, so that it can only be started over.
    """

    state: State
    detail: str = ""
    result: RunRecord | None = None
    paused: PausedRecord | None = None
    damaged: bool = False


def look(cell: Cell, workdir: Path) -> CellState:
    """Reads the state of a cell from its directory.

    - running: a process holds its directory;
    - stale: its directory holds work of another config;
    - done: it has a `result.json`;
    - failed: it ended with an error, or its result or config cannot be read;
    - missing: otherwise. If it has a checkpoint, it will resume from there.
    """
    directory = cell.directory(workdir)
    if is_claimed(directory):
        return CellState(State.RUNNING, _progress(directory))
    config = _read(directory / "config.json")
    if config is None:
        if has_work(directory) or (directory / "config.json").exists():
            return CellState(State.FAILED, f"{directory / 'config.json'} is damaged", damaged=True)
        return CellState(State.MISSING)
    asked = json.loads(json.dumps(cell.run.to_dict()))
    try:
        before = of_any_version(config, asked)
        changed = what_differs(directory, before, asked, lambda: digest_of_rows(cell.run), lambda: origins(cell.run))
    except (UserError, RunFailed) as error:  # its rows cannot be read, which is an error when it runs
        changed = [str(error)]
    if changed and has_work(directory):
        return CellState(State.STALE, the_first(changed))
    if (directory / "result.json").is_file():
        try:
            record = RunRecord.read(directory / "result.json")
        except NotARecord as why:
            said = f"{directory / 'result.json'} is damaged ({why})"
            return CellState(State.FAILED, said[:_LONGEST_DETAIL], damaged=True)
        return CellState(State.DONE, f"{record.metric_name} {record.metric:.4f}", record)
    failure = _read(directory / FAILURE_FILE)
    if failure is not None and not changed:
        return CellState(State.FAILED, str(failure.get("error"))[:_LONGEST_DETAIL])
    if not has_work(directory):
        return CellState(State.MISSING)
    paused = _paused(directory)
    waited = "" if paused is None else f": it waited after {counted(paused.epochs, 'epoch')}"
    return CellState(State.MISSING, f"goes on from its checkpoint{waited}", paused=paused)


def _paused(directory: Path) -> PausedRecord | None:
    """The record of a paused run; None without a readable one: resuming up to its checkpoint costs next to nothing."""
    try:
        return PausedRecord.read(directory / PAUSE_FILE)
    except NotARecord:
        return None


def record_failure(directory: Path, error: BaseException | str) -> None:
    """Writes the error, with the traceback of an exception, to the cell's directory for `look`."""
    shown = error if isinstance(error, str) else kind_and_first_line(error, 1000)
    trace = "" if isinstance(error, str) else "".join(traceback.format_exception(error))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError), write_whole(directory / FAILURE_FILE) as beside:  # the scheduler reports it, too
        beside.write_text(json.dumps({"error": shown, "time": now, "traceback": trace}, indent=2) + "\n")


def _progress(directory: Path) -> str:
    progress = _read(directory / PROGRESS_FILE)
    if progress is None or not all(isinstance(progress.get(key), int) for key in ("done", "total")):
        return "starting"
    done = f"{progress['done']:,}/{progress['total']:,}"
    shown = f"{progress.get('phase')} {done}  {progress.get('note')}".rstrip() + f"  [{progress.get('worker')}]"
    return shown[:_LONGEST_DETAIL]


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing or damaged."""
    try:
        return read_json_object(path)
    except UserError:
        return None
