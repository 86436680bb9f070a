"""Runs side by side: what several runs of one process ask of the device at a time is asked once.

Runs over one base differ in their seeds, rates, lengths and what they have learned, and share its weights and nearly
all of its arithmetic. Each run here stays the run that it is, with a thread, a directory, checkpoints and an early end
of its own. Only its calls of compiled programs meet those of the others: when every run that is at work waits for one,
calls of the same program become one program over a new first axis, that of runs. `jax.vmap` makes it: a product of the
base's weights, which have no such axis, becomes one product over the rows of all runs; what trains has the axis, and
its products stay apart.

So runs may begin, stop early, fail or be resumed at any time, whatever the others do: who has left is waited for no
more, and costs nothing. Runs that are not at the same place of a step or of an epoch are brought there: of calls that
have a turn those of the earliest are answered, and the others wait (otherwise two runs that are one call apart would
be so for ever).
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jpeft.program import Program, free_memory, needed_memory

LARGEST = 64  # runs in one program


@dataclasses.dataclass(eq=False)
class _Call:
    """One run's call of a program: what it gives, and what came of it."""

    program: "MeetingProgram"
    args: tuple[Any, ...]
    place: int  # of the run among the others, so that an order of arrival decides nothing
    result: Any = None
    error: BaseException | None = None
    done: bool = False


class Meeting:
    """Where the calls of runs meet. Any thread may come and go.

    However many runs are left, programs are for 1, 2, 4, ... of them, so that few are compiled; and for as many as the
    device has the memory for.
    """

    def __init__(self):
        self._changed = threading.Condition()  # its lock is held while the device works: nobody could use it meanwhile
        self._places: dict[int, int] = {}  # of the runs that are at work, by thread
        self._waiting: list[_Call] = []
        self._together: dict[tuple[Hashable, ...], Program] = {}

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While within, the others wait for the calls of this thread's run."""
        with self._changed:
            free = next(place for place in range(len(self._places) + 1) if place not in self._places.values())
            self._places[threading.get_ident()] = free
        try:
            yield
        finally:
            with self._changed:
                del self._places[threading.get_ident()]
                self._changed.notify_all()

    def joined(
        self,
        program: Program,
        *,
        shared: Sequence[int],
        turn: int | None = None,
        widen: "Callable[[Batches], Batches] | None" = None,
        kind: Hashable | None = None,
        like: int | None = None,
    ) -> "MeetingProgram":
        """The program as a run calls it, to meet the others' calls of the same.

        Args:
          shared: positions of arguments that have to be the very same arrays in all calls that become one: the base.
          turn: its place in what every run does again and again: a call waits while another has an earlier one. None
            waits for no turn.
          widen: makes the last arguments of several calls, batches, alike; None where only equal shapes may meet.
          kind: programs of one kind may meet, whose other arguments differ in sizes, such as a rank, and may be filled
            up with zeros; None where only this very program does.
          like: as of `Program.side_by_side`, where a kind is given.
        """
        return MeetingProgram(self, program, tuple(shared), turn, widen, kind, like)

    def call(self, program: "MeetingProgram", args: tuple[Any, ...]) -> Any:
        """What the program gives for these arguments, when every run that is at work has come with a call of its own.

        A thread that is not `at_work` waits for nobody.
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
                self._answer(self._whose_turn_it_is())
                self._changed.notify_all()
        if call.error is not None:
            raise call.error
        return call.result

    def _whose_turn_it_is(self) -> list[_Call]:
        """Takes those of the waiting calls that are to be answered now, one at least, in an order that stays."""
        earliest = min((call.program.turn for call in self._waiting if call.program.turn is not None), default=None)
        now = [call for call in self._waiting if call.program.turn in (None, earliest)]
        self._waiting = [call for call in self._waiting if call not in now]
        return sorted(now, key=lambda call: call.place)

    def _answer(self, calls: Sequence[_Call]) -> None:
        groups: dict[Hashable, list[_Call]] = {}
        for call in calls:
            groups.setdefault(call.program.meets(call.args), []).append(call)
        for group in groups.values():
            while group:
                group = group[self._answer_as_one(group) :]

    def _answer_as_one(self, waiting: Sequence[_Call]) -> int:
        """Answers the first of these calls, as many as fit, and returns how many."""
        first = waiting[0].program
        calls = waiting[: min(1 << (len(waiting).bit_length() - 1), first.most)]
        calls = sorted(calls, key=lambda call: str(call.program.sizes(call.args)))  # few orders, few programs
        try:
            if len(calls) == 1:
                calls[0].result = first.alone(*calls[0].args)
            else:
                sizes = tuple(call.program.sizes(call.args) for call in calls)
                program, args = self._program(first, sizes), first.gathered([call.args for call in calls])
                if not _fits(program, args):
                    first.most = len(calls) // 2
                    return 0
                for call, result in zip(calls, program(*args), strict=True):
                    call.result = result
        except BaseException as error:  # whoever waits has to hear of it
            for call in calls:
                call.error = error
        for call in calls:
            call.done = True
            call.program.widest = max(call.program.widest, len(calls))
        return len(calls)

    def _program(self, program: "MeetingProgram", sizes: tuple[Hashable, ...]) -> Program:
        key = (program.kind, *sizes)
        if key not in self._together:
            self._together[key] = program.alone.side_by_side(len(sizes), program.shared, program.like)
        return self._together[key]

    def made_of(self, kind: Hashable) -> list[Program]:
        """What was made of programs of a kind for several runs."""
        with self._changed:
            return [made for (of, *_), made in self._together.items() if of == kind]


def _fits(program: Program, args: Sequence[Any]) -> bool:
    """Whether the device has the memory; asked of the compiled program before it first runs."""
    if program.is_ready_for(args[-1]):
        return True
    free = free_memory()
    return free is None or needed_memory(program.prepare(*args)) <= free


Batches = Sequence[Any]


class MeetingProgram:
    """A program as one run calls it, answered together with the others' calls of the same.

    Attributes:
      alone: the program of one run.
      shared: positions of the arguments that all runs have in common.
      kind: of programs that may meet; this very program's where none other may.
      like, turn: as of `Meeting.joined`.
      widest: the largest number of runs that one program was for, so far.
    """

    def __init__(
        self,
        meeting: Meeting,
        alone: Program,
        shared: tuple[int, ...],
        turn: int | None,
        widen: Callable[[Batches], Batches] | None,
        kind: Hashable | None,
        like: int | None,
    ):
        self._meeting, self.alone, self.shared, self.turn, self._widen = meeting, alone, shared, turn, widen
        self.kind, self.like = alone if kind is None else kind, like
        self._any_sizes = kind is not None
        self.widest, self.most = 1, LARGEST

    def __call__(self, *args: Any) -> Any:
        return self._meeting.call(self, args)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far, for one run and for several."""
        made = self._meeting.made_of(self.kind)
        return self.alone.compile_seconds + sum(program.compile_seconds for program in made)

    @property
    def num_shapes(self) -> int:
        """The number of programs compiled so far, for one run and for several."""
        made = self._meeting.made_of(self.kind)
        return self.alone.num_shapes + sum(program.num_shapes for program in made)

    def meets(self, args: tuple[Any, ...]) -> Hashable:
        """What two calls have to agree in to become one."""
        same = tuple(id(leaf) for i in self.shared for leaf in jax.tree.leaves(args[i]))
        leaves = jax.tree.leaves(args[-1])
        alike = tuple(leaf.shape[:1] if self._widen else leaf.shape for leaf in leaves)
        return self.kind, same, alike

    def sizes(self, args: tuple[Any, ...]) -> Hashable:
        """The shapes in which calls of one kind may differ; nothing where they may not."""
        if not self._any_sizes:
            return ()
        own = (arg for i, arg in enumerate(args[:-1]) if i not in self.shared)
        return tuple(jnp.shape(leaf) for arg in own for leaf in jax.tree.leaves(arg))

    def gathered(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The arguments of several calls as those of one: in the place of each, one of every run."""
        args = [given[0] if i in self.shared else given for i, given in enumerate(zip(*calls, strict=True))]
        if self._widen is not None:
            args[-1] = tuple(self._widen(args[-1]))
        return args
