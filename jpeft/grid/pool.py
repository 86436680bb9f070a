"""The interface between the scheduler and a pool of workers."""

import dataclasses
from typing import Protocol, runtime_checkable

from jpeft.grid.worker import Job, Outcome


@dataclasses.dataclass(frozen=True)
class Event:
    """The end of a worker's job.

    Attributes:
      worker: its number.
      outcome: None if the worker died.
      reason: how it died, else empty.
    """

    worker: int
    outcome: Outcome | None
    reason: str = ""


@runtime_checkable
class Pool(Protocol):
    """Numbered workers, each with one job at a time. A worker that died is replaced when it gets its next job.

    Attributes:
      lanes: how many consecutive workers are threads of one process, whose device calls are combined.
    """

    lanes: int

    @property
    def size(self) -> int:
        """The number of workers: how many cells can run at a time."""
        ...

    def submit(self, worker: int, job: Job) -> None:
        """Gives a job to an idle worker."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Waits up to `timeout` seconds for workers to end their jobs, and returns these events."""
        ...

    def close(self) -> None:
        """Stops the workers; a pool that can lets them save their cells first."""
        ...
