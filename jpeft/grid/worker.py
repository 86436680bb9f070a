"""A worker process: it runs one cell after the other, or several in threads, and reuses models and programs.

Jobs are read as JSON lines from standard input, outcomes are written as JSON lines to standard output; anything else
that is printed goes to standard error. At the end of the input the running cells are saved and the process exits.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpeft.config import Run
from jpeft.errors import Busy, Paused, Stopped
from jpeft.files import write_whole
from jpeft.grid.state import FAILURE_FILE, LOG_FILE, PROGRESS_FILE, record_failure
from jpeft.run.display import Bar, Display
from jpeft.run.stop import ask_all
from jpeft.train.loop import execute
from jpeft.train.meeting import Meeting
from jpeft.train.session import Session
from jpeft.trouble import explained, kind_and_first_line

_SECONDS_BETWEEN_RECORDS = 1.0
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell to run.

    Attributes:
      config: its run as in `config.json`.
      directory: of the cell.
      overwrite: whether work that is in the directory may be deleted.
      lane: the thread of the worker process that runs it.
      pause_after: epochs after which the cell is paused; None runs it to its end, test included.
    """

    config: dict[str, Any]
    directory: str
    overwrite: bool = False
    lane: int = 0
    pause_after: int | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
      status: `done`; `paused` after `Job.pause_after` epochs; `failed`, with the error recorded in the directory;
        `busy` if another process is running the cell; `stopped` if the worker was stopped.
      error: the reason, unless it is done.
      seconds: of the whole job.
      overhead_seconds: those outside training, validation and tests: loading, compiling, saving.
      lane: of the job.
    """

    status: str
    error: str = ""
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    lane: int = 0


def do(job: Job, session: Session) -> Outcome:
    """Runs a cell; an error becomes an outcome, never an exception."""
    return dataclasses.replace(_do(job, session), lane=job.lane)


def _do(job: Job, session: Session) -> Outcome:
    directory, started = Path(job.directory), time.monotonic()
    display = _CellDisplay(directory)
    claimed = False  # until then another process may be at work in the directory

    def begin() -> None:
        nonlocal claimed
        claimed = True
        (directory / FAILURE_FILE).unlink(missing_ok=True)

    try:
        result = execute(
            Run.from_config(job.config),
            directory,
            overwrite=job.overwrite,
            display=display,
            session=session,
            pause_after=job.pause_after,
            on_claim=begin,
        )
    except Busy as error:
        return Outcome("busy", str(error))
    except Paused as why:
        return Outcome("paused", str(why), seconds=time.monotonic() - started)
    except (Stopped, KeyboardInterrupt) as error:
        return Outcome("stopped", str(error))
    except Exception as error:  # any error: the other cells go on, and the traceback is recorded
        if (directory / "config.json").is_file():  # else the directory is not the cell's
            record_failure(directory, error)
        expected = explained(error)
        return Outcome("failed", str(expected) if expected else kind_and_first_line(error))
    finally:
        if claimed:
            display.close()
    seconds = time.monotonic() - started
    own = sum(result["seconds"].get(phase, 0.0) for phase in ("train", "validation", "test", "zero_shot"))
    return Outcome("done", seconds=seconds, overhead_seconds=seconds - own)


class _CellDisplay(Display):
    """Writes a run's display to the cell's directory: lines to `log.txt`, progress to `progress.json`."""

    def __init__(self, directory: Path):
        super().__init__(quiet=True)
        self._directory = directory

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError), (self._directory / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    @contextlib.contextmanager
    def task(
        self, name: str, total: int, done: int = 0, note: str = "", unit: str = "examples", **options: Any
    ) -> Iterator[Bar]:
        with super().task(name, total, done, note, unit, **options) as task:
            yield _RecordedBar(task, self._directory, name, total, done, note)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self._directory / PROGRESS_FILE).unlink(missing_ok=True)


class _RecordedBar(Bar):
    """A progress bar that is written to `progress.json`."""

    def __init__(self, task: Bar, directory: Path, name: str, total: int, done: int, note: str):
        self._task, self._directory, self._written = task, directory, float("-inf")
        self._record = {"phase": name, "total": total, "done": done, "note": note}
        self._record["worker"] = f"{socket.gethostname()}:{os.getpid()}"
        self.advance(0, note)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._task.advance(amount, note)
        self._record |= {"done": self._record["done"] + amount, "note": note}
        if time.monotonic() - self._written < _SECONDS_BETWEEN_RECORDS:
            return
        self._written = time.monotonic()
        with contextlib.suppress(OSError), write_whole(self._directory / PROGRESS_FILE) as beside:
            beside.write_text(json.dumps(self._record))


def main() -> None:
    """`python -m jpeft.grid.worker LANES [CORE ...]`: `jpeft.grid.local` starts it, bound to these CPU cores."""
    lanes, *cores = (int(argument) for argument in sys.argv[1:])
    if cores:
        os.sched_setaffinity(0, cores)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the outcomes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process, which then closes the input
    jobs: list[queue.SimpleQueue[Job | None]] = [queue.SimpleQueue() for _ in range(lanes)]

    def listen() -> None:
        for line in sys.stdin:
            if line.endswith("\n"):  # else the parent process died while writing it
                job = Job(**json.loads(line))
                jobs[job.lane].put(job)
        for lane in jobs:
            lane.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    writing = threading.Lock()

    def work(lane: int, session: Session) -> None:
        while (job := jobs[lane].get()) is not None:
            outcome = do(job, session)
            with writing:
                answers.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            if outcome.status == "stopped":
                return

    if lanes == 1:
        # Outside training SIGTERM exits at once, which is as safe for a cell as a kill. An exception raised here would
        # surface anywhere, and inside JAX it could be lost or look like an error of the cell.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        work(0, Session())
        return
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    session = Session(Meeting())
    threads = [threading.Thread(target=work, args=(lane, session)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if stopping.wait(_SECONDS_BETWEEN_LOOKS):
            ask_all(signal.SIGTERM)  # repeated: a run that is being set up only reacts once it trains
            time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    main()
