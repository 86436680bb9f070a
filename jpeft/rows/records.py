"""A row of a file with columns as its parser found it: values, and the lines that they stood in."""

from collections.abc import Callable
from typing import NamedTuple

from jpeft.words import counted

LINES_JUDGED = 1000  # of a row that has more: so many are kept to be looked at
STRAY_RETURN = "has a carriage return outside of quotes; lines end in LF or CRLF"


class Record(NamedTuple):
    """Values of one row, and the lines that it is made of.

    Attributes:
      began, ended: numbers of its first and its last line, from 1.
      size: bytes of the file since the record before.
      lines: the first `LINES_JUDGED` of them, as they stand.
    """

    began: int
    ended: int
    values: list[str]
    size: int
    lines: list[str]

    @property
    def where(self) -> str:
        """`line 3`, or `lines 3 to 5`."""
        return f"line {self.began}" if self.began == self.ended else f"lines {self.began} to {self.ended}"


class Doubts:
    """Tells of the first row of each kind that may not be what was meant, at once, and at the end of the others."""

    def __init__(self, name: str, report: Callable[[str], None]):
        self._name, self._report = name, report
        self._others: dict[str, int] = {}
        self._last: dict[str, str] = {}

    def of(self, kind: str, where: str, line: str) -> None:
        """Takes note of a row.

        Args:
          kind: what its kind does, for a sentence whose subject is `row` or `rows`.
          line: said of the first.
        """
        if kind in self._others:
            self._others[kind] += 1
            self._last[kind] = where
        else:
            self._others[kind] = 0
            self._report(line)

    def end(self) -> None:
        """Says how many more rows there were of each kind."""
        for kind, others in self._others.items():
            if others:
                self._report(f"{counted(others, 'more row')} of {self._name} {kind}, the last in {self._last[kind]}")
