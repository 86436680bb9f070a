"""Where answers go: what `jpeft predict` asks of standard output and of a file alike."""

import abc
import sys
from collections.abc import Sequence

from jpeft.predict.rows import RowToAnswer


class Output(abc.ABC):
    """Answers in the order of the rows; asked, window by window from the first row on, which of them it has."""

    @abc.abstractmethod
    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        """How many of the rows that come next have an answer from before."""

    @abc.abstractmethod
    def write(self, lines: Sequence[str]) -> None:
        """Adds the answers that come next."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Ends the output; to be called once, after the last row."""

    @abc.abstractmethod
    def after_stop(self) -> str:
        """Tells a user who stopped the command what is kept of its answers and how to go on."""


class Printed(Output):
    """Answers on standard output, which has none from before: every row is answered."""

    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        return 0

    def write(self, lines: Sequence[str]) -> None:
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        """Nothing is left to do: every window of answers was flushed as it was written."""

    def after_stop(self) -> str:
        return "with --output FILE, the same command would go on"
