"""Rows between tabs.

Most files with tabs are written without quoting. There a quote is plain text, unless it stands around a whole value,
as spreadsheets and pandas write one that holds a tab, a quote or lines; one that has both tabs and lines is not read.
"""

import re
from collections.abc import Iterator, Sequence

from jpeft.errors import UserError
from jpeft.rows import text
from jpeft.rows.records import LINES_JUDGED, STRAY_RETURN, Doubts, Record
from jpeft.rows.text import Line, bare

MOST_LINES_IN_QUOTES = 10_000  # of a file with tabs; they are held until the quote is closed, or is none
_WHOLE = re.compile(r' *"([^"]*(?:""[^"]*)*)" *(?=\t|\Z)')  # a value in quotes,
_WHOLE_WITHOUT_TABS = re.compile(r' *"([^"\t]*(?:""[^"\t]*)*)" *(?=\t|\Z)')
_OPEN = re.compile(r' *"[^"\t]*(?:""[^"\t]*)*\Z')  # and what may be one if it is closed in a line further down
_GOES_ON = re.compile(r'[^"\t]*(?:""[^"\t]*)*\Z')
_CLOSES = re.compile(r'[^"\t]*(?:""[^"\t]*)*" *(?=\t|\Z)')


class _Lines:
    """Lines of which some may be given back."""

    def __init__(self, of: Iterator[Line]):
        self._of = of
        self._waiting: list[Line] = []

    def next(self) -> Line | None:
        return self._waiting.pop() if self._waiting else next(self._of, None)

    def give_back(self, lines: Sequence[Line]) -> None:
        self._waiting.extend(reversed(lines))


def rows_between_tabs(of: Iterator[Line], name: str, doubts: Doubts) -> Iterator[Record]:
    """Each line that is not blank, with those below it that belong to a value in quotes."""
    lines = _Lines(of)
    columns = blank = 0
    while (line := lines.next()) is not None:
        alone = bare(line.text)
        if not alone:
            blank += line.size
            continue
        record, below = alone, []
        if '"' in alone:
            record, below = _with_lines_below(line, lines)
        values = _values(record, _WHOLE)
        if columns and len(values) != columns:
            flat = _values(alone, _WHOLE_WITHOUT_TABS)  # a quote that spans values is none
            if len(flat) == columns:
                lines.give_back(below)
                values, below = flat, []
        columns = columns or len(values)
        made = Record(
            line.number,
            below[-1].number if below else line.number,
            [value for value, _ in values],
            blank + sum(each.size for each in (line, *below)),
            [each.text for each in (line, *below)][:LINES_JUDGED],
        )
        if any(as_is and "\r" in value for value, as_is in values):
            raise UserError(f"{made.where} of {name} {STRAY_RETURN}.")
        if len(values) == columns and any(as_is and _is_unclosed(value) for value, as_is in values):
            doubts.of(
                "begin a value so",
                made.where,
                f"{made.where} of {name} begins a value with a quote that does not close it: between tabs that is read "
                "as plain text",
            )
        blank = 0
        yield made


def _values(record: str, whole: re.Pattern[str]) -> list[tuple[str, bool]]:
    """The values between tabs, and whether each is what stands there; else it is what stands there in quotes."""
    values, at = [], 0
    while True:
        found = whole.match(record, at)
        if found is not None:
            end = found.end()
            values.append((found[1].replace('""', '"'), False))
        else:
            end = record.find("\t", at)
            end = len(record) if end < 0 else end
            values.append((record[at:end], True))
        if end == len(record):
            return values
        at = end + 1


def _is_unclosed(value: str) -> bool:
    return value.lstrip(" ").startswith('"') and value.count('"') % 2 == 1


def _ends_open(record: str) -> bool:
    """Whether the last value begins with a quote that a line further down may close."""
    last, as_is = _values(record, _WHOLE)[-1]
    return as_is and _OPEN.match(last) is not None


def _with_lines_below(line: Line, lines: _Lines) -> tuple[str, list[Line]]:
    """A line, with those below it up to the end of the quotes in which its last value begins.

    Where a line has a tab before the quote is closed, the quote is plain text, and lines are as they stand.
    """
    record, below = line.text, []
    while _ends_open(bare(record)):
        taken: list[Line] = []
        size, closed = sum(each.size for each in (line, *below)), False
        while not closed:
            further = lines.next()
            if further is not None:
                taken.append(further)
                size += further.size
                closed = bool(_CLOSES.match(bare(further.text)))
            goes_on = closed or further is not None and _GOES_ON.match(bare(further.text))
            if not goes_on or size > text.MOST_ROW_BYTES or len(below) + len(taken) > MOST_LINES_IN_QUOTES:
                lines.give_back(taken)
                return bare(record), below
        record = "".join([record, *(each.text for each in taken)])
        below += taken
    return bare(record), below
