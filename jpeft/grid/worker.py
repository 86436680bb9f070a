"""A process that does one cell after the other, or several side by side, and keeps what they share.

Jobs come as lines of JSON on standard input, outcomes leave as lines of JSON on standard output; whatever else is
printed goes to standard error. When the input ends, the process that handed out the jobs is gone: the cells at work are
saved and left.
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
    """A cell to do: its run as `config.json` holds it, its directory, and whether what is there may go.

    Attributes:
      lane: which of a process's places it is done in, where there are several.
      pause_after: how many of its epochs are to be trained for now; None for all, and the test.
    """

    config: dict[str, Any]
    directory: str
    overwrite: bool = False
    lane: int = 0
    pause_after: int | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one cell that a worker did: how it ended, and why if it failed.

    Attributes:
      status: `done`; `paused`, after the epochs that the job asks for; `failed`, with the error recorded in the
        directory; `busy`, another process has it; `stopped`, the worker was told to.
      overhead_seconds: spent beside training, validating and testing (zero-shot too): loading, compiling, saving.
    """

    status: str
    error: str = ""
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    lane: int = 0


def do(job: Job, session: Session) -> Outcome:
    """Runs a cell; whatever goes wrong is an outcome."""
    return dataclasses.replace(_do(job, session), lane=job.lane)


def _do(job: Job, session: Session) -> Outcome:
    directory, started = Path(job.directory), time.monotonic()
    display = _CellDisplay(directory)
    try:
        (directory / FAILURE_FILE).unlink(missing_ok=True)
        result = execute(
            Run.from_config(job.config),
            directory,
            overwrite=job.overwrite,
            display=display,
            session=session,
            pause_after=job.pause_after,
        )
    except Busy as error:
        return Outcome("busy", str(error))
    except Paused as why:
        return Outcome("paused", str(why), seconds=time.monotonic() - started)
    except (Stopped, KeyboardInterrupt) as error:
        return Outcome("stopped", str(error))
    except Exception as error:  # of whatever kind: the other cells go on, and the traceback is kept
        if (directory / "config.json").is_file():  # otherwise the directory is not the cell's
            record_failure(directory, error)
        expected = explained(error)
        return Outcome("failed", str(expected) if expected else kind_and_first_line(error))
    finally:
        display.close()
    seconds = time.monotonic() - started
    own = sum(result["seconds"].get(phase, 0.0) for phase in ("train", "validation", "test", "zero_shot"))
    return Outcome("done", seconds=seconds, overhead_seconds=seconds - own)


class _CellDisplay(Display):
    """Leaves what a person would see in the cell's directory: `log.txt`, and where it is in `progress.json`."""

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
    """A bar that nobody looks at, and a file that says where it stands."""

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
    """`python -m jpeft.grid.worker LANES [CORE ...]`, as `jpeft.grid.local` starts it; bound to the cores named."""
    lanes, *cores = (int(argument) for argument in sys.argv[1:])
    if cores:
        os.sched_setaffinity(0, cores)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that waits for us, and it tells us
    jobs: list[queue.SimpleQueue[Job | None]] = [queue.SimpleQueue() for _ in range(lanes)]

    def listen() -> None:
        for line in sys.stdin:
            if line.endswith("\n"):  # else whoever hands out the jobs died while writing this one
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
        # Where a cell does not train: as a kill, which a cell stands at any moment. An exception raised here would come
        # up wherever the process is just then, and inside JAX be lost, or come out as an error of the cell.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        work(0, Session())
        return
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    session = Session(Meeting())
    threads = [threading.Thread(target=work, args=(lane, session)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if told.wait(_SECONDS_BETWEEN_LOOKS):
            ask_all(signal.SIGTERM)  # again and again: a run that was still being set up hears of it when it trains
            time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    main()
