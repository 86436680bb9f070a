"""Batches the program calls of several runs of one process, each run in a thread of its own.

Runs over one base differ in their seeds, rates, lengths and trainable leaves; they share the base's weights and nearly
all of the arithmetic. Each run keeps its own thread, directory, checkpoints and early stopping; only its calls of
compiled programs meet those of the others. When every active run waits in a call, calls of the same program become one
call of a program vectorised over a new leading axis, the axis of runs (`jax.vmap`). A product with the base's weights,
which lack that axis, becomes one product over the rows of all runs; trainable leaves have the axis, so their products
stay per run.

Runs may start, stop early, fail or resume at any time without regard to the others: a run that has left is no longer
waited for. Runs at different points of a step or of an epoch are brought together by turns: among waiting calls that
have a turn, those with the earliest are answered and the others wait. Otherwise two runs that are one call apart would
stay so for ever.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jpeft.program import Program, add_compile_seconds, free_memory, needed_memory, thread_compile_seconds

MAX_RUNS = 64  # in one program


@dataclasses.dataclass(eq=False)
class _Call:
    """One run's call of a program, with its result or error once it has been answered."""

    program: "MeetingProgram"
    args: tuple[Any, ...]
    place: int  # of the run among the others: calls are ordered by it, so that the order of arrival does not matter
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    answered_by: int | None = None  # the thread that ran it
    compile_seconds: float = 0.0  # that this thread spent compiling for it


class Meeting:
    """Where the calls of several runs meet. Runs may join and leave from any thread.

    Programs are compiled for 1, 2, 4, ... runs, so that few are compiled, and for no more than fit the device's memory.
    """

    def __init__(self):
        # Its lock is held while the device works, which no other run could use meanwhile.
        self._changed = threading.Condition()
        self._places: dict[int, int] = {}  # of active runs, by thread
        self._waiting: list[_Call] = []
        self._batched: dict[tuple[Hashable, ...], Program] = {}

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Marks this thread's run as active: calls of the other runs wait for its calls while the block runs."""
        with self._changed:
            free = next(place for place in range(len(self._places) + 1) if place not in self._places.values())
            self._places[threading.get_ident()] = free
        try:
            yield
        finally:
            with self._changed:
                del self._places[threading.get_ident()]
                self._changed.notify_all()

    def join(
        self,
        program: Program,
        *,
        shared: Sequence[int],
        turn: int | None = None,
        pad_alike: "Callable[[Batches], Batches] | None" = None,
        kind: Hashable | None = None,
        like: int | None = None,
    ) -> "MeetingProgram":
        """Wraps a program so that its calls are batched with those of other runs.

        Args:
          shared: positions of the arguments (the base) that must be identical arrays in all calls that become one.
          turn: the program's place in the cycle that every run repeats: a call waits while one with an earlier turn is
            waiting. None never waits for a turn.
          pad_alike: pads the last arguments (batches) of several calls to a common shape; None if only equal shapes may
            meet.
          kind: programs of the same kind may meet although their other arguments differ in sizes, such as a rank;
            smaller ones are padded with zeros. None if only this very program may meet itself.
          like: as in `Program.side_by_side`, where a kind is given.
        """
        return MeetingProgram(self, program, tuple(shared), turn, pad_alike, kind, like)

    def call(self, program: "MeetingProgram", args: tuple[Any, ...]) -> Any:
        """Returns the program's result once every active run waits in a call of its own.

        A thread that is not `at_work` runs its program at once, alone.
        """
        place = self._places.get(threading.get_ident())
        if place is None:
            return program.alone(*args)
        call = _Call(program, args, place)
        with self._changed:
            self._waiting.append(call)
            self._changed.notify_all()
            while not call.done:
                if len(self._waiting) < len(self._places):
                    self._changed.wait()
                    continue
                self._run(self._take_due_calls())
                self._changed.notify_all()
        if call.answered_by != threading.get_ident():
            add_compile_seconds(call.compile_seconds)
        if call.error is not None:
            raise call.error
        return call.result

    def _take_due_calls(self) -> list[_Call]:
        """Removes from the waiting calls those to answer now, at least one, and returns them in a fixed order."""
        earliest = min((call.program.turn for call in self._waiting if call.program.turn is not None), default=None)
        now = [call for call in self._waiting if call.program.turn in (None, earliest)]
        self._waiting = [call for call in self._waiting if call not in now]
        return sorted(now, key=lambda call: call.place)

    def _run(self, calls: Sequence[_Call]) -> None:
        groups: dict[Hashable, list[_Call]] = {}
        for call in calls:
            groups.setdefault(call.program.batching_key(call.args), []).append(call)
        for group in groups.values():
            while group:
                group = group[self._run_batched(group) :]

    def _run_batched(self, waiting: Sequence[_Call]) -> int:
        """Answers the first of these calls, as many as fit into one program, and returns their number."""
        first = waiting[0].program
        calls = waiting[: min(1 << (len(waiting).bit_length() - 1), first.max_runs)]
        # In order of their sizes, so that fewer programs are compiled.
        calls = sorted(calls, key=lambda call: str(call.program.sizes(call.args)))
        compiled = thread_compile_seconds()
        try:
            if len(calls) == 1:
                calls[0].result = first.alone(*calls[0].args)
            else:
                sizes = tuple(call.program.sizes(call.args) for call in calls)
                program, args = self._program(first, sizes), first.batch_arguments([call.args for call in calls])
                if not _fits(program, args):
                    first.max_runs = len(calls) // 2
                    return 0
                for call, result in zip(calls, program(*args), strict=True):
                    call.result = result
        except BaseException as error:  # raised in every waiting thread
            for call in calls:
                call.error = error
        for call in calls:
            call.done, call.answered_by = True, threading.get_ident()
            call.compile_seconds = thread_compile_seconds() - compiled
            call.program.widest = max(call.program.widest, len(calls))
        return len(calls)

    def _program(self, program: "MeetingProgram", sizes: tuple[Hashable, ...]) -> Program:
        key = (program.kind, *sizes)
        if key not in self._batched:
            self._batched[key] = program.alone.side_by_side(len(sizes), program.shared, program.like)
        return self._batched[key]

    def batched_programs(self, kind: Hashable) -> list[Program]:
        """Returns the programs compiled for several runs of a kind."""
        with self._changed:
            return [program for (of_kind, *_), program in self._batched.items() if of_kind == kind]


def _fits(program: Program, args: Sequence[Any]) -> bool:
    """Whether the device has the memory for a program; checked before its first run."""
    if program.is_ready_for(args[-1]):
        return True
    free = free_memory()
    return free is None or needed_memory(program.prepare(*args)) <= free


Batches = Sequence[Any]


class MeetingProgram:
    """A program as one run calls it; the meeting batches its calls with those of other runs.

    Attributes:
      alone: the program of one run.
      shared: positions of the arguments that all runs share.
      kind: programs of the same kind may meet; by default a program is a kind of its own.
      like, turn: as in `Meeting.join`.
      widest: the largest number of runs in one call so far.
      max_runs: the most runs that are known to fit into one call.
    """

    def __init__(
        self,
        meeting: Meeting,
        alone: Program,
        shared: tuple[int, ...],
        turn: int | None,
        pad_alike: Callable[[Batches], Batches] | None,
        kind: Hashable | None,
        like: int | None,
    ):
        self._meeting, self.alone, self.shared, self.turn, self._pad_alike = meeting, alone, shared, turn, pad_alike
        self.kind, self.like = alone if kind is None else kind, like
        self._any_sizes = kind is not None
        self.widest, self.max_runs = 1, MAX_RUNS

    def __call__(self, *args: Any) -> Any:
        return self._meeting.call(self, args)

    @property
    def num_shapes(self) -> int:
        """The number of programs compiled so far, for one run and for several."""
        batched = self._meeting.batched_programs(self.kind)
        return self.alone.num_shapes + sum(program.num_shapes for program in batched)

    def batching_key(self, args: tuple[Any, ...]) -> Hashable:
        """Calls with equal keys may become one."""
        same = tuple(id(leaf) for i in self.shared for leaf in jax.tree.leaves(args[i]))
        leaves = jax.tree.leaves(args[-1])
        alike = tuple(leaf.shape[:1] if self._pad_alike else leaf.shape for leaf in leaves)
        return self.kind, same, alike

    def sizes(self, args: tuple[Any, ...]) -> Hashable:
        """The shapes in which calls of one kind may differ; empty for programs without a kind."""
        if not self._any_sizes:
            return ()
        own = (arg for i, arg in enumerate(args[:-1]) if i not in self.shared)
        return tuple(jnp.shape(leaf) for arg in own for leaf in jax.tree.leaves(arg))

    def batch_arguments(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The arguments of one batched call: for each position the shared argument, or a tuple with each run's own."""
        args = [given[0] if i in self.shared else given for i, given in enumerate(zip(*calls, strict=True))]
        if self._pad_alike is not None:
            args[-1] = tuple(self._pad_alike(args[-1]))
        return args
