"""Several processes, on one host or more, that execute one run together through `jax.distributed`.

Every process executes the same run and calls the same programs in the same order. Whatever could differ between
processes (who holds a directory, who was asked to stop, whose clock says that a checkpoint is due) is agreed on here,
and only the first process writes files. With one process all of this is a no-op.
"""

import contextlib
import dataclasses
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jpeft.errors import RunFailed, UserError
from jpeft.run.lifeline import Lifeline
from jpeft.trouble import first_line

T = TypeVar("T")
_MOST_PROCESSES = 65_536
_SECONDS_TO_GATHER = 300  # within which all processes have to start: a cluster does not start them at once
_HEARTBEAT_TIMEOUT_SECONDS = 20  # without a heartbeat, after which a process counts as lost
_LONGEST_MESSAGE = 1024  # bytes


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, as `jax.distributed.initialize` takes them.

    Values that are None are detected by JAX on SLURM, Open MPI, Kubernetes and TPU pods.

    Attributes:
      coordinator_address: `host:port` of the first process; the port has to be free and reachable from all processes.
      num_processes: the number of processes.
      process_id: the index of this process, from 0.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def _check(self) -> None:
        count, own = self.num_processes, self.process_id
        if count is not None and not 1 <= count <= _MOST_PROCESSES:
            raise UserError(f"--num_processes is {count}; expected from 1 to {_MOST_PROCESSES:,}.")
        if own is not None and not 0 <= own < (count or _MOST_PROCESSES):
            raise UserError(f"--process_id is {own}; expected from 0 to {(count or _MOST_PROCESSES) - 1:,}.")
        if self.coordinator_address is not None:
            _resolve(self.coordinator_address)

    def join(self) -> None:
        """Makes this process one of the group; to be called before any other use of JAX.

        Raises:
          UserError: a value that is None cannot be detected, or the values do not agree.
          RunFailed: the other processes did not start in time.
        """
        self._check()
        try:
            jax.distributed.initialize(
                self.coordinator_address,
                self.num_processes,
                self.process_id,
                initialization_timeout=_SECONDS_TO_GATHER,
                heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
                shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
            )
        except ValueError as error:
            raise UserError(
                f"the processes of this run are not all known ({error}) start them by srun, mpirun, in a Kubernetes "
                "job or on a TPU pod, or give each --coordinator_address=HOST:PORT --num_processes=N --process_id=I."
            ) from None
        except (RuntimeError, jax.errors.JaxRuntimeError) as error:
            raise RunFailed(f"the processes of this run did not come together: {first_line(error)}") from None


def _resolve(address: str) -> None:
    """Raises `UserError` unless the address is HOST:PORT with a known host; JAX would wait for it."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise UserError(f"--coordinator_address is {address[:80]!r}; expected HOST:PORT, such as node0:12345.")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label of the name is empty or too long
        raise UserError(f"--coordinator_address: no host is called {host[:80]!r}; expected HOST:PORT.") from None


def is_first() -> bool:
    """Whether this is the first process of the run, the only one that writes files and prints."""
    return jax.process_index() == 0


def any_of(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set in any process. Every process of the run has to call it."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.asarray(flags)).any(axis=0).tolist()


def agreed(read: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Calls `read` in every process, and returns its value only if it succeeded in all of them.

    Every process of the run has to call it.

    Returns:
      The value and None; or None and an exception, which is this process's own or says that another process failed.
    """
    value, failure = None, None
    try:
        value = read()
    except Exception as error:
        failure = error
    if any_of([failure is not None])[0]:
        return None, failure or RuntimeError("another process of this run cannot read it")
    return value, None


def minimum_over_processes(number: float) -> float:
    """The smallest of the numbers that the processes give. Every process of the run has to call it."""
    if jax.process_count() == 1:
        return number
    return float(np.min(multihost_utils.process_allgather(np.float64(number))))


def wait_for_all(what: str) -> None:
    """Returns when every process of the run has called it with the same `what`, a name for the place in the program."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def entered_by_first(context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enters a context in the first process; the others proceed once it is entered, and fail if it cannot be.

    Raises:
      RunFailed: in the other processes, with the error of the first.
    """
    if jax.process_count() == 1:
        with context:
            yield
        return
    with contextlib.ExitStack() as stack:
        failure = None
        if is_first():
            try:
                stack.enter_context(context)
            except Exception as error:
                failure = error
        message = from_first(first_line(failure) if failure else "")
        if failure is not None:
            raise failure
        if message:
            raise RunFailed(f"the first process could not start: {message}")
        yield


def from_first(text: str) -> str:
    """Broadcasts `text` from the first process, truncated to 1,024 bytes. Every process of the run has to call it."""
    if jax.process_count() == 1:
        return text
    buffer = np.zeros(_LONGEST_MESSAGE, np.uint8)
    encoded = np.frombuffer(text.encode()[:_LONGEST_MESSAGE], np.uint8)
    buffer[: len(encoded)] = encoded
    received = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return received.tobytes().rstrip(b"\0").decode(errors="ignore")


def host_copy(tree: Any) -> Any:
    """Copies every leaf to this process's memory, whole, so that donating the device buffers later does not affect it.

    A leaf that is sharded over processes is gathered, so every process of the run has to call it.
    """

    def copied(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.array(leaf, copy=True)

    return jax.tree.map(copied, tree)


# Parts of errors that the loss of another process causes: in a collective, at the coordinator, at a barrier.
_SIGNS_OF_LOSS = ("Gloo", "closed by peer", "reset by peer", "UNAVAILABLE", "heartbeat", "DEADLINE_EXCEEDED", "NCCL")
_SECONDS_TO_SPEAK = 20  # that a failed process has to report its error before the others end
_LEAVING = threading.Lock()  # taken by the first thread that ends the process, and never released


@contextlib.contextmanager
def ending_together(group: ProcessGroup | None) -> Iterator[None]:
    """Ends this process when another one is lost; when this one fails, tells the others.

    With several processes it leaves by `os._exit`: JAX would otherwise wait for processes that are gone.
    """
    if group is None:
        yield
        return
    lifeline = Lifeline(_after_loss)
    try:
        _join_lifeline(lifeline, group)
        yield
    except Exception as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError) and any(s in str(error) for s in _SIGNS_OF_LOSS)
        if lost:
            _leave_after_loss(first_line(error, 120))
        lifeline.close(failed=True)
        if isinstance(error, (UserError, RunFailed)):
            _leave(2 if isinstance(error, UserError) else 1, f"error: process {jax.process_index()}: {error}")
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1)
    lifeline.close(failed=False)


def _join_lifeline(lifeline: Lifeline, group: ProcessGroup) -> None:
    """Connects the processes; every process has to call it. The first one tells the others where to connect to."""
    given = (group.coordinator_address or "").rpartition(":")[0].strip("[]")
    offer = f"{given or socket.getfqdn()} {lifeline.offer()}" if is_first() else ""
    host, _, offered = from_first(offer).partition(" ")
    if is_first():
        return
    try:
        lifeline.grasp(host, offered)
    except OSError as error:  # a firewall, for example; JAX's heartbeats still detect losses
        print(f"note: process {jax.process_index()} cannot connect to {host} ({error})", file=sys.stderr)


def _after_loss(failed: bool) -> None:
    if failed:
        time.sleep(_SECONDS_TO_SPEAK)
        _leave_after_loss("it failed, and reports why itself")
    _leave_after_loss("its connection closed")


def _leave_after_loss(sign: str) -> NoReturn:
    _leave(
        1,
        f"error: process {jax.process_index()}: another process of this run is gone ({sign}); start all of them again "
        "by the same command: the run goes on from its last checkpoint.",
    )


def _leave(status: int, message: str = "") -> NoReturn:
    with _LEAVING:
        if message:
            print(message, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed
                stream.flush()
        os._exit(status)
