"""Reads rows separated by tabs.

Most files with tabs do not use quoting. Here a quote is plain text unless it encloses a whole value: spreadsheets and
pandas quote values that contain a tab, a quote or line breaks. A value with both tabs and line breaks is not supported.
"""

import re
from collections.abc import Iterator, Sequence

from jpeft.errors import UserError
from jpeft.rows import text
from jpeft.rows.records import LINES_JUDGED, STRAY_RETURN, Doubts, Record
from jpeft.rows.text import Line, bare

MOST_LINES_IN_QUOTES = 10_000  # of one value; they are buffered until the quote is closed or turns out to be plain text
_WHOLE = re.compile(r' *"([^"]*(?:""[^"]*)*)" *(?=\t|\Z)')  # a quoted value
_WHOLE_WITHOUT_TABS = re.compile(r' *"([^"\t]*(?:""[^"\t]*)*)" *(?=\t|\Z)')
_OPEN = re.compile(r' *"[^"\t]*(?:""[^"\t]*)*\Z')  # the first line of a quoted value of several lines,
_GOES_ON = re.compile(r'[^"\t]*(?:""[^"\t]*)*\Z')  # a line inside it,
_CLOSES = re.compile(r'[^"\t]*(?:""[^"\t]*)*" *(?=\t|\Z)')  # and the beginning of its last line


class _Lines:
    """An iterator over lines with push-back."""

    def __init__(self, of: Iterator[Line]):
        self._of = of
        self._waiting: list[Line] = []

    def next(self) -> Line | None:
        return self._waiting.pop() if self._waiting else next(self._of, None)

    def give_back(self, lines: Sequence[Line]) -> None:
        self._waiting.extend(reversed(lines))


def rows_between_tabs(of: Iterator[Line], name: str, doubts: Doubts) -> Iterator[Record]:
    """Yields a record for each line that is not blank, joined with further lines if its last value is quoted."""
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
            flat = _values(alone, _WHOLE_WITHOUT_TABS)  # try the line with quotes that span tabs as plain text
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
                "a value that begins with an unclosed quote",
                made.where,
                f"{made.where} of {name} begins a value with a quote that does not close it: between tabs that is read "
                "as plain text",
            )
        blank = 0
        yield made


def _values(record: str, whole: re.Pattern[str]) -> list[tuple[str, bool]]:
    """Splits a record at tabs. Returns each value, and whether it is plain text rather than unquoted by `whole`."""
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
    """Whether the last value begins with a quote that a later line may close."""
    last, as_is = _values(record, _WHOLE)[-1]
    return as_is and _OPEN.match(last) is not None


def _with_lines_below(line: Line, lines: _Lines) -> tuple[str, list[Line]]:
    """Joins a line with the following ones while its last value is an open quoted value; returns also these lines.

    If a tab comes before the closing quote, the quote is plain text, and the lines are given back.
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
