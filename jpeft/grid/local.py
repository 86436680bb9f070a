"""Workers on this machine, one process for each set of its devices."""

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
      gpus: as CUDA_VISIBLE_DEVICES names them; None for all.
      cores: numbers of CPU cores; None for all.
      workers: how many have this share, each its part of the memory.
    """

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None
    workers: int = 1

    def environment(self) -> dict[str, str]:
        """What a worker's environment has beside this process's."""
        devices = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return devices | (part_of_the_gpu(self.workers) if self.workers > 1 else {})


class LocalPool:
    """Processes of `jpeft.grid.worker`. Closing it, and the end of this process however it comes, makes them save.

    Attributes:
      lanes: how many workers are in one process, side by side; those of the first process come first.
    """

    def __init__(self, shares: Sequence[DeviceShare], *, lanes: int = 1):
        """Will start one process for each share of this machine, when it gets its first job."""
        self._shares, self.lanes = shares, lanes
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._unfinished: dict[int, bytes] = {}  # the beginning of a line that a process has not written to its end
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
            pass  # it has died: `wait` finds its output at an end

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        share = self._shares[number]
        process = subprocess.Popen(
            [sys.executable, "-m", "jpeft.grid.worker", str(self.lanes), *map(str, share.cores or ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **share.environment()},
            start_new_session=True,  # a Ctrl-C reaches this process alone, which then makes them save
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
            # Past Python's buffer, of which the selector knows nothing: lines left there would wait for the next one.
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
        with contextlib.suppress(OSError):  # it died before it had read its job, which would go out now
            process.stdin.close()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def device_shares(jobs: int) -> list[DeviceShare]:
    """Each worker's share of the machine, of its GPUs or of its cores, for so many workers.

    More workers than GPUs have one each and share it with others: one small run leaves a large GPU idle.

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
    if not hasattr(os, "sched_getaffinity"):  # this system does not bind processes to cores
        return [DeviceShare() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs} is more than the {len(cores)} CPU cores of this machine.")
    return [DeviceShare(cores=share) for share in _parts(cores, jobs)]


def told_of(shares: Sequence[DeviceShare]) -> str | None:
    """A line for who asked for so many workers that several share a GPU; None where each has devices of its own."""
    most = max(share.workers for share in shares)
    if most == 1:
        return None
    memory = "each has its part of the memory" if part_of_the_gpu(most) else "memory is taken as the environment says"
    return f"{len(shares)} workers share the GPUs, up to {most} on one; {memory}"


def _parts(devices: Sequence[T], jobs: int) -> list[tuple[T, ...]]:
    each = len(devices) // jobs
    return [tuple(devices[i * each : (i + 1) * each]) for i in range(jobs)]
