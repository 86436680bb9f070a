"""Reads CSV and similar files with a header: detects the separator and the style of quoting, and checks the rows.

With commas, semicolons and bars, quotes follow RFC 4180: a quoted value may contain separators and line breaks. So two
stray quotes in different rows turn all rows between them into one value. The syntax cannot tell it from a long value,
but its lines can: each of them splits into as many values as the header.

`jpeft.rows.tabbed` reads files with tabs, which have other rules.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jpeft.errors import UserError
from jpeft.rows import text
from jpeft.rows.records import LINES_JUDGED, STRAY_RETURN, Doubts, Record
from jpeft.rows.tabbed import rows_between_tabs
from jpeft.rows.text import UNNAMED, FileRow, Line, bare, column_names
from jpeft.words import counted

_SEPARATORS = ",;\t|"
_LINES_LOOKED_AT, _BYTES_LOOKED_AT = 50, 2**20  # the sample for detecting the style
# The number of lines, each like a row, from which a quoted value is refused as swallowed rows. It is larger if a space
# follows every separator, since prose looks like that, too.
_SURELY_ROWS, _SURELY_SPACED_ROWS = 4, 12


class _Style(NamedTuple):
    """How values are separated.

    Attributes:
      separator: one character.
      quoted: whether spaces after a separator are skipped, so that a quote after them opens a value.
      spaced: whether a space follows most separators.
    """

    separator: str
    quoted: bool = False
    spaced: bool = False


def csv_rows(
    of: Iterator[Line], name: str, *, tabs: bool = False, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """Yields the rows below a header, with the separator detected: comma, semicolon, tab or bar.

    Args:
      tabs: whether the file's ending says that tabs are the separator.
      report: called with a line about the first row that may be misread, and at the end about the number of others.

    Raises:
      UserError: column names are missing or equal, a row has another number of values than the header, a quote is
        misplaced, the header is repeated, or a quoted value seems to contain rows.
    """
    csv.field_size_limit(max(csv.field_size_limit(), text.MOST_ROW_BYTES))
    looked_at: list[Line] = []
    while len(looked_at) < _LINES_LOOKED_AT and sum(line.size for line in looked_at) < _BYTES_LOOKED_AT:
        line = next(of, None)
        if line is None:
            break
        looked_at.append(line)
    # Excel's line that names the separator; other programs quote it.
    given = re.fullmatch(r'("?)sep=([^"\r\n])\1\r?\n?', looked_at[0].text) if looked_at else None
    if given:
        del looked_at[0]
    sample = [line.text for line in looked_at]
    style = _style(given[2] if given else _separator(sample, tabs=tabs), sample)
    doubts = Doubts(name, report)
    lines = itertools.chain(looked_at, of)
    records = rows_between_tabs(lines, name, doubts) if style.separator == "\t" else _records(lines, style, name)
    header: list[str] = []
    for record in records:
        if not header:
            header = _header(record.values, name)
            continue
        if len(record.values) != len(header):
            raise UserError(
                f"{record.where} of {name} has {counted(len(record.values), 'value')}, the header names "
                f"{counted(len(header), 'column')} ({_names(header)}), separated by {style.separator!r}"
                f"{_advice(record, style)}."
            )
        _refuse_header_again(record, header, name, doubts)
        if style.separator != "\t":
            _refuse_late_quote(record, style, name)
        if record.ended > record.began:
            _refuse_swallowed_rows(record, style, len(header), name, doubts)
        yield FileRow(f"line {record.began}", dict(zip(header, record.values, strict=True)), record.size)
    doubts.end()


# --- The separator and the style of quoting ---


def _separator(sample: list[str], *, tabs: bool) -> str:
    """Detects the separator with which the header has several names and most rows as many values; else a comma."""
    order = "\t" + _SEPARATORS.replace("\t", "") if tabs else _SEPARATORS

    def fit(separator: str) -> tuple[bool, float, int]:
        try:
            rows = [row for row in csv.reader(sample, delimiter=separator) if row]
        except csv.Error:
            return (False, 0.0, 0)
        if not rows or len(rows[0]) < 2:
            return (False, 0.0, 0)
        return (True, sum(len(row) == len(rows[0]) for row in rows) / len(rows), len(rows[0]))

    return max(order, key=fit)  # the first of equals


def _style(separator: str, sample: list[str]) -> _Style:
    """Detects the meaning of spaces after the separator from a sample of the file."""
    if separator in "\t ":
        return _Style(separator)
    plain, _ = _tried(sample, separator, quoted=False)
    read, sound = _tried(sample, separator, quoted=True)
    fitting = lambda rows: sum(len(row) == len(rows[0]) for row in rows)
    # `"a, b", "c, d"` is two quoted values, but ` "great" he said` is plain text: skip the spaces only if more quoted
    # values and no fewer well-formed rows result.
    quoted = sound and _late_quotes(plain) > _late_quotes(read) and fitting(read) >= fitting(plain)
    behind = [value for row in plain[1:] for value in row[1:]]
    return _Style(separator, quoted, quoted or 2 * sum(value.startswith(" ") for value in behind) > len(behind))


def _tried(lines: Iterable[str], separator: str, *, quoted: bool) -> tuple[list[list[str]], bool]:
    """Parses lines up to the first malformed row; returns the rows, and whether all are well-formed.

    An unclosed quote at the end is well-formed, since the sample may end inside a value.
    """
    rows, reader = [], csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=quoted)
    try:
        for row in reader:
            if row:
                rows.append(row)
    except csv.Error as error:
        return rows, "unexpected end" in str(error)
    return rows, True


def _late_quotes(rows: Iterable[Sequence[str]]) -> int:
    """Counts the values that begin with a space and have a quote after the spaces."""
    return sum(value.startswith(" ") and value.lstrip(" ").startswith('"') for row in rows for value in row)


# --- Rows separated by commas, semicolons and bars ---


class _Feed:
    """Feeds lines to `csv.reader`, and tracks and limits the lines of the current record."""

    def __init__(self, of: Iterator[Line], name: str):
        self._of, self._name = of, name
        self.began = self.number = self.size = 0
        self.lines: list[str] = []

    def next_record(self) -> None:
        self.began, self.size, self.lines = 0, 0, []

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._of)
        self.number = line.number
        self.began = self.began or line.number
        self.size += line.size
        if self.size > text.MOST_ROW_BYTES:
            raise UserError(
                f"the row that begins in line {self.began} of {self._name} has more than {text.MOST_ROW_BYTES:,} "
                "bytes; is a quote opened there and not closed?"
            )
        if len(self.lines) < LINES_JUDGED:
            self.lines.append(line.text)
        return line.text


def _records(of: Iterator[Line], style: _Style, name: str) -> Iterator[Record]:
    """Yields the records that are not blank."""
    feed = _Feed(of, name)
    records = csv.reader(feed, delimiter=style.separator, strict=True, skipinitialspace=style.quoted)
    blank = 0
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            one_line = feed.began in (0, feed.number)
            where = f"line {feed.number}" if one_line else f"the row of lines {feed.began} to {feed.number}"
            raise UserError(f"{where} of {name} {_csv_reason(str(error), style.separator)}.") from None
        if values:
            yield Record(feed.began, feed.number, values, feed.size + blank, feed.lines)
            blank = 0
        else:
            blank += feed.size
        feed.next_record()


def _csv_reason(reason: str, separator: str) -> str:
    if "expected after" in reason:
        return (
            f"has something other than {separator!r} after a closing quote; a quote within quotes is written twice, "
            '"", not \\"'
        )
    if "unexpected end" in reason:
        return "has a quote that is opened and never closed"
    if "new-line character" in reason:
        return STRAY_RETURN
    return f"is no CSV ({reason})"


# --- Checks of suspicious rows ---


def _refuse_header_again(record: Record, header: Sequence[str], name: str, doubts: Doubts) -> None:
    """Refuses a row with the names of the columns, as in concatenated files; with one column it only reports it."""
    if (first := record.values[0].lstrip("\ufeff").strip()) not in header:
        return
    if sorted([first, *(value.strip() for value in record.values[1:])]) != sorted(header):
        return
    if len(header) > 1:
        raise UserError(
            f"{record.where} of {name} repeats the header ({_names(header)}), as in concatenated files; remove that "
            "line."
        )
    doubts.of(
        "the header again", record.where, f"{record.where} of {name} is the header's {first!r} again, read as a row"
    )


def _refuse_late_quote(record: Record, style: _Style, name: str) -> None:
    """Refuses a quoted value after a space if the sample had none, so that spaces were taken as parts of values."""
    if style.quoted or style.separator == " " or not _late_quotes([record.values]):
        return
    read, sound = _tried(record.lines, style.separator, quoted=True)
    if sound and len(read) == 1 and _late_quotes(read) < _late_quotes([record.values]):
        raise UserError(
            f"{record.where} of {name} has a quoted value after a space, and the first rows have none; remove the "
            f"space between {style.separator!r} and the quote."
        )


def _refuse_swallowed_rows(record: Record, style: _Style, columns: int, name: str, doubts: Doubts) -> None:
    """Refuses a row whose lines are clearly rows by themselves, and reports one whose lines may be."""
    if columns == 1:
        doubts.of("several lines", record.where, f"{record.where} of {name} are one row, in quotes")
        return
    if style.separator == "\t" or not _all_are_rows(record.lines, style, columns):
        return
    if len(record.lines) >= (_SURELY_SPACED_ROWS if style.spaced else _SURELY_ROWS):
        raise UserError(
            f"{record.where} of {name} are one row, for a quote that is opened in the first is closed in the last "
            f"only; each of them has the header's {columns} values by itself. Remove those quotes; if it is one value "
            "nevertheless, save the rows as JSON lines."
        )
    doubts.of(
        "lines that look like rows",
        record.where,
        f"{record.where} of {name} are one row, in quotes, and each of them looks like a row by itself: is a quote too "
        "many there?",
    )


def _all_are_rows(lines: Sequence[str], style: _Style, columns: int) -> bool:
    """Whether each line splits into as many values as there are columns, and most of them do not look like prose."""
    if any('"' in line.replace('""', "") for line in lines[1:-1]):  # the row has several quoted values
        return False
    meant = 0
    for line in lines:
        values = bare(line).split(style.separator)
        if len(values) != columns:
            return False
        # Prose has a space after its commas, and its lines may end with a comma.
        behind = style.spaced or not any(value.startswith(" ") for value in values[1:])
        meant += behind and (columns > 2 or all(value.strip() for value in values))
    return 4 * meant >= 3 * len(lines)


def _advice(record: Record, style: _Style) -> str:
    if style.separator != "\t" or not any('"' in value for value in record.values):
        return ""
    return (
        "; between tabs a quote is plain text unless it encloses a whole value, which may have tabs or line breaks but "
        "not both (in JSON lines it may)"
    )


def _header(values: list[str], name: str) -> list[str]:
    names = [value.strip() for value in values]
    if not names[0] and len(names) > 1:
        names[0] = UNNAMED
    for number, column in enumerate(names, start=1):
        if not column:
            raise UserError(
                f"column {number} of {name} has no name in the header ({_names(names)}); name it or remove it."
            )
    return column_names(names, name)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(column[:40] for column in columns[:8]) + (", ..." if len(columns) > 8 else "")
