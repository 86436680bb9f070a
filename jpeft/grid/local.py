"""Worker processes on this machine, one for each share of its devices."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

from jpeft.accelerators import part_of_the_gpu, visible_gpus
from jpeft.errors import UserError
from jpeft.grid.pool import Event
from jpeft.grid.worker import Job, Outcome

_SECONDS_TO_SAVE = 60.0
_BYTES_AT_ONCE = 1 << 16
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """The share of this machine that one worker process may use: its devices and CPU cores.

    Attributes:
      gpus: names as in CUDA_VISIBLE_DEVICES; None for all.
      cores: indices of CPU cores; None for all.
      workers: how many workers use these GPUs, each with a part of the memory.
    """

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None
    workers: int = 1

    def environment(self) -> dict[str, str]:
        """The environment variables of the worker process, added to those of this process."""
        devices = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return devices | (part_of_the_gpu(self.workers) if self.workers > 1 else {})


class LocalPool:
    """A pool of `jpeft.grid.worker` processes.

    When it is closed, or this process ends for any reason, the workers save their cells and exit.

    Attributes:
      lanes: workers per process; workers `p * lanes` to `(p + 1) * lanes - 1` are in process `p`.
    """

    def __init__(self, shares: Sequence[DeviceShare], *, lanes: int = 1):
        """Prepares one process per share; each is started with its first job."""
        self._shares, self.lanes = shares, lanes
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._unfinished: dict[int, bytes] = {}  # by process, the incomplete last line of its output
        self._selector = selectors.DefaultSelector()

    @property
    def size(self) -> int:
        return len(self._shares) * self.lanes

    def submit(self, worker: int, job: Job) -> None:
        number, lane = divmod(worker, self.lanes)
        if number not in self._processes:
            self._processes[number] = self._start(number)
        process = self._processes[number]
        assert process.stdin is not None
        try:
            line = json.dumps(dataclasses.asdict(dataclasses.replace(job, lane=lane))) + "\n"
            process.stdin.write(line.encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has died; `wait` reports it at the end of its output

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        share = self._shares[number]
        process = subprocess.Popen(
            [sys.executable, "-m", "jpeft.grid.worker", str(self.lanes), *map(str, share.cores or ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **share.environment()},
            start_new_session=True,  # Ctrl-C reaches this process only, which then lets the workers save
        )
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, number)
        return process

    def wait(self, timeout: float) -> list[Event]:
        events = []
        for key, _ in self._selector.select(timeout):
            number: int = key.data
            process = self._processes[number]
            assert process.stdout is not None
            # Not through Python's buffer: the selector would not see lines that are left in it.
            read = os.read(process.stdout.fileno(), _BYTES_AT_ONCE)
            *lines, self._unfinished[number] = (self._unfinished.get(number, b"") + read).split(b"\n")
            for line in lines:
                outcome = Outcome(**json.loads(line))
                events.append(Event(number * self.lanes + outcome.lane, outcome))
            if not read:
                how = _how_it_ended(process.wait())
                events += [Event(number * self.lanes + lane, None, how) for lane in range(self.lanes)]
                self._forget(number)
        return events

    def close(self) -> None:
        for process in self._processes.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for number, process in list(self._processes.items()):
            try:
                process.wait(_SECONDS_TO_SAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget(number)

    def _forget(self, number: int) -> None:
        process = self._processes.pop(number)
        self._unfinished.pop(number, None)
        assert process.stdin is not None and process.stdout is not None
        self._selector.unregister(process.stdout)
        process.stdout.close()
        with contextlib.suppress(OSError):  # it died before reading its job, which `close` would flush
            process.stdin.close()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def device_shares(jobs: int) -> list[DeviceShare]:
    """Divides this machine's GPUs or, without any, its CPU cores among workers.

    If there are more workers than GPUs, several share one: a small run leaves a large GPU mostly idle.

    Args:
      jobs: the number of workers.

    Raises:
      UserError: there are no GPUs, and fewer cores than workers.
    """
    if jobs == 1:
        return [DeviceShare()]
    gpus = visible_gpus()
    if jobs > len(gpus) > 0:
        at_most = -(-jobs // len(gpus))
        return [DeviceShare(gpus=(gpus[i % len(gpus)],), workers=at_most) for i in range(jobs)]
    if gpus:
        return [DeviceShare(gpus=share) for share in _parts(gpus, jobs)]
    if not hasattr(os, "sched_getaffinity"):  # this system cannot bind processes to cores
        return [DeviceShare() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs} is more than the {len(cores)} CPU cores of this machine.")
    return [DeviceShare(cores=share) for share in _parts(cores, jobs)]


def shared_gpus_line(shares: Sequence[DeviceShare]) -> str | None:
    """A line for the user if several workers share a GPU; None if each has devices of its own."""
    most = max(share.workers for share in shares)
    if most == 1:
        return None
    memory = "each has its part of the memory" if part_of_the_gpu(most) else "memory is taken as the environment says"
    return f"{len(shares)} workers share the GPUs, up to {most} on one; {memory}"


def _parts(devices: Sequence[T], jobs: int) -> list[tuple[T, ...]]:
    each = len(devices) // jobs
    return [tuple(devices[i * each : (i + 1) * each]) for i in range(jobs)]
