"""Workers on a Ray cluster, each an actor that asks for the devices of one cell.

The grid's directory has to be at the same path on every node, and jpeft installed there. A worker that dies, with its
node or alone, is replaced wherever there is room; its cell goes on from its last checkpoint.
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
    """Actors on a cluster that runs already, or on this machine alone."""

    lanes = 1

    def __init__(self, address: str, *, jobs: int | None, cpus: float, gpus: float):
        """Joins the cluster.

        Args:
          address: as `ray.init` takes it: `auto`, `ray://...`, `host:port`, or `local` for this machine alone.
          jobs: workers; None for as many as the cluster has room for.
          cpus, gpus: that each asks for.

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
        self._at_work: dict[Any, int] = {}  # what a worker will answer to, and who it is

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
        """Ends the workers at once: what is at work is as of its last checkpoint."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._at_work.clear()
        self._ray.shutdown()


class _Worker:
    """A Ray actor, which is a process on some machine of the cluster: it runs one cell after the other."""

    def __init__(self):
        from jpeft.train.session import Session

        self._session = Session()

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        from jpeft.grid.worker import Job, do

        return dataclasses.asdict(do(Job(**job), self._session))


def _room(resources: dict[str, float], *, cpus: float, gpus: float) -> int:
    """Workers that fit on a node."""
    asked = {"CPU": cpus, "GPU": gpus}
    return int(min(resources.get(kind, 0.0) // amount for kind, amount in asked.items() if amount > 0))
