"""The interface of outputs of `jpeft predict`, and the one to standard output."""

import abc
import sys
from collections.abc import Sequence

from jpeft.predict.rows import RowToAnswer


class Output(abc.ABC):
    """An output that takes answers in the order of the rows, and may hold answers of an earlier call."""

    @abc.abstractmethod
    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        """How many of these rows, which are the next window, are answered already by an earlier call."""

    @abc.abstractmethod
    def write(self, lines: Sequence[str]) -> None:
        """Appends the next answers."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Completes the output; called once, after the last row."""

    @abc.abstractmethod
    def after_stop(self) -> str:
        """A message for the user who stopped the command: what is kept, and how to resume."""


class Printed(Output):
    """The output to standard output, which cannot be resumed."""

    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        return 0

    def write(self, lines: Sequence[str]) -> None:
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        """A no-op: every window was flushed when it was written."""

    def after_stop(self) -> str:
        return "with --output FILE, the same command would go on"
