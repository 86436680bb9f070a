"""What a scheduler asks of the processes that do the work, wherever they are."""

import dataclasses
from typing import Protocol, runtime_checkable

from jpeft.grid.worker import Job, Outcome


@dataclasses.dataclass(frozen=True)
class Event:
    """A worker has ended its job: with an outcome, or, with none, by dying.

    Attributes:
      reason: how it died.
    """

    worker: int
    outcome: Outcome | None
    reason: str = ""


@runtime_checkable
class Pool(Protocol):
    """Workers by number, each at one job at most. A worker that has died is replaced when it is given its next job.

    Attributes:
      lanes: how many workers, one number behind the other, are threads of one process, and ask the device together.
    """

    lanes: int

    @property
    def size(self) -> int:
        """The number of worker processes, which is how many cells can run at a time."""
        ...

    def submit(self, worker: int, job: Job) -> None:
        """Gives a job to a worker that has none."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Waits up to `timeout` seconds for news of the workers, and returns what there is."""
        ...

    def close(self) -> None:
        """Ends the workers; a cell at work is saved first where the pool can."""
        ...
