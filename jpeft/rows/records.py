"""Parsed rows of files with separated values, with their source lines, and reports about doubtful rows."""

from collections.abc import Callable
from typing import NamedTuple

from jpeft.words import counted

LINES_JUDGED = 1000  # the most lines of a row that are kept for checks
STRAY_RETURN = "has a carriage return outside of quotes; lines end in LF or CRLF"


class Record(NamedTuple):
    """The values of one row, with its lines.

    Attributes:
      began, ended: numbers of its first and last line, from 1.
      size: bytes of the file since the previous record.
      lines: its first `LINES_JUDGED` lines, unparsed.
    """

    began: int
    ended: int
    values: list[str]
    size: int
    lines: list[str]

    @property
    def where(self) -> str:
        """The lines in words: `line 3`, or `lines 3 to 5`."""
        return f"line {self.began}" if self.began == self.ended else f"lines {self.began} to {self.ended}"


class Doubts:
    """Reports rows that may be misread: the first of each kind at once, and the number of the others at the end."""

    def __init__(self, name: str, report: Callable[[str], None]):
        self._name, self._report = name, report
        self._others: dict[str, int] = {}
        self._last: dict[str, str] = {}

    def of(self, kind: str, where: str, line: str) -> None:
        """Reports the row if it is the first of its kind, and counts it otherwise.

        Args:
          kind: what such rows have, for the sentence about the others.
          where: the row in words.
          line: the report about the first row.
        """
        if kind in self._others:
            self._others[kind] += 1
            self._last[kind] = where
        else:
            self._others[kind] = 0
            self._report(line)

    def end(self) -> None:
        """Reports the number of further rows of each kind."""
        for kind, others in self._others.items():
            if others:
                rows, have = counted(others, "more row"), "has" if others == 1 else "have"
                self._report(f"{rows} of {self._name} {have} {kind}, the last in {self._last[kind]}")
