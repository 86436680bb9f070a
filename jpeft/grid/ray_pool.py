"""Workers on a Ray cluster, each an actor that requests the devices of one cell.

Every node needs jpeft and the grid's directory at the same path. A worker that dies, alone or with its node, is
replaced wherever the cluster has room; its cell resumes from its last checkpoint.
"""

import dataclasses
import logging
import time
from typing import Any

from jpeft.errors import RunFailed, UserError
from jpeft.grid.pool import Event
from jpeft.grid.worker import Job, Outcome
from jpeft.trouble import first_line


class RayPool:
    """A pool of Ray actors, on a running cluster or on this machine alone."""

    lanes = 1

    def __init__(self, address: str, *, jobs: int | None, cpus: float, gpus: float):
        """Joins the cluster.

        Args:
          address: as for `ray.init`: `auto`, `ray://...`, `host:port`, or `local` for this machine alone.
          jobs: number of workers; None for as many as the cluster has room for.
          cpus, gpus: requested per worker.

        Raises:
          UserError: Ray is not installed, or the cluster has no node with room for one worker.
          RunFailed: there is no cluster at that address.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]  (an extra)
            import ray.exceptions  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--launcher ray needs Ray: pip install 'jpeft[ray]'.") from None
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            said = first_line(error)
            raise RunFailed(f"no Ray cluster at {address!r} ({said}); start one: ray start --head") from None
        room = sum(_room(node["Resources"], cpus=cpus, gpus=gpus) for node in ray.nodes() if node["Alive"])
        if room < 1:
            raise UserError(
                f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs; ask for less with --cpus, --gpus."
            )
        self._size = jobs or room
        self._actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)
        self._actors: dict[int, Any] = {}
        self._at_work: dict[Any, int] = {}  # the pending result of each worker's job, and its number

    @property
    def size(self) -> int:
        return self._size

    def submit(self, worker: int, job: Job) -> None:
        if worker not in self._actors:
            self._actors[worker] = self._actor.remote()
        self._at_work[self._actors[worker].do.remote(dataclasses.asdict(job))] = worker

    def wait(self, timeout: float) -> list[Event]:
        if not self._at_work:
            time.sleep(timeout)
            return []
        ended, _ = self._ray.wait(list(self._at_work), timeout=timeout)
        events = []
        for answer in ended:
            worker = self._at_work.pop(answer)
            try:
                events.append(Event(worker, Outcome(**self._ray.get(answer))))
            except self._ray.exceptions.RayError as error:
                self._ray.kill(self._actors.pop(worker))
                events.append(Event(worker, None, f"its worker died ({type(error).__name__})"))
        return events

    def close(self) -> None:
        """Kills the workers; running cells keep their last checkpoints."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._at_work.clear()
        self._ray.shutdown()


class _Worker:
    """A Ray actor: a process on some node of the cluster that runs one cell after the other."""

    def __init__(self):
        from jpeft.train.session import Session

        self._session = Session()

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        from jpeft.grid.worker import Job, do

        return dataclasses.asdict(do(Job(**job), self._session))


def _room(resources: dict[str, float], *, cpus: float, gpus: float) -> int:
    """How many workers fit on a node."""
    asked = {"CPU": cpus, "GPU": gpus}
    return int(min(resources.get(kind, 0.0) // amount for kind, amount in asked.items() if amount > 0))
