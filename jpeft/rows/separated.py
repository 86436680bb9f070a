"""Rows of CSV and its kin, under a header: what separates values, what a quote means, and what looks amiss.

Between commas, semicolons and bars a quote is RFC 4180's: what it opens may hold separators and lines. So two quotes
that stand in two rows by chance make one row of all between them, which cannot be told from a long value by its syntax
alone, but by its lines: each of them splits into as many values as the header has.

Between tabs most files are written without quoting. There a quote is plain text, unless it stands around a whole value,
as spreadsheets and pandas write one that holds a tab, a quote or lines; one that has both tabs and lines is not read.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jpeft.errors import UserError
from jpeft.rows import text
from jpeft.rows.text import FileRow, Line, column_names
from jpeft.words import counted

MOST_LINES_IN_QUOTES = 10_000  # of a file with tabs; they are held until the quote is closed, or is none
_SEPARATORS = ",;\t|"
_LINES_LOOKED_AT, _BYTES_LOOKED_AT = 50, 2**20  # for the separator
# So many lines that each look like a row are rows. Where a space follows every separator, prose looks like that, too.
_SURELY_ROWS, _SURELY_SPACED_ROWS = 4, 12
_LINES_JUDGED = 1000  # of a row that has more


class _Record(NamedTuple):
    """Values of one row, and the lines that it is made of."""

    began: int
    ended: int
    values: list[str]
    size: int
    lines: list[str]

    @property
    def where(self) -> str:
        return _place(self.began, self.ended)


class _Style(NamedTuple):
    """How values are separated.

    Attributes:
      separator: one character.
      quoted: whether spaces behind it are no part of values, so that a quote behind them opens one.
      spaced: whether most values begin with a space, or would.
    """

    separator: str
    quoted: bool = False
    spaced: bool = False


def csv_rows(
    of: Iterator[Line], name: str, *, tabs: bool = False, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """Rows under a header; the separator is found: comma, semicolon, tab or bar. White space around names goes.

    Args:
      tabs: whether the file's ending says that tabs separate.
      report: hears of the first row that may not be what was meant, and at the end how many more there were.

    Raises:
      UserError: two columns of one name, a column without, a row of more or fewer values, a misplaced quote, a header
        that comes again, quotes that make one row of many.
    """
    csv.field_size_limit(max(csv.field_size_limit(), text.MOST_ROW_BYTES))
    looked_at: list[Line] = []
    while len(looked_at) < _LINES_LOOKED_AT and sum(line.size for line in looked_at) < _BYTES_LOOKED_AT:
        line = next(of, None)
        if line is None:
            break
        looked_at.append(line)
    # A line that Excel writes and reads; other programs put it in quotes.
    given = re.fullmatch(r'("?)sep=([^"\r\n])\1\r?\n?', looked_at[0].text) if looked_at else None
    if given:
        del looked_at[0]
    sample = [line.text for line in looked_at]
    style = _style(given[2] if given else _separator(sample, tabs=tabs), sample)
    doubts = _Doubts(name, report)
    lines = itertools.chain(looked_at, of)
    records = _between_tabs(lines, name, doubts) if style.separator == "\t" else _records(lines, style, name)
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


def _place(began: int, ended: int) -> str:
    return f"line {began}" if began == ended else f"lines {began} to {ended}"


class _Doubts:
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


# What separates


def _separator(sample: list[str], *, tabs: bool) -> str:
    """The one that gives the header several names and the most rows as many values; a comma where none does."""
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
    """What spaces behind separators are, as the first rows have them: one of them may be the first to have a quote."""
    if separator in "\t ":
        return _Style(separator)
    plain, _ = _tried(sample, separator, quoted=False)
    read, sound = _tried(sample, separator, quoted=True)
    fitting = lambda rows: sum(len(row) == len(rows[0]) for row in rows)
    # `"a, b", "c, d"` is two values, and ` "great" he said` is a text. What reads them as values loses no rows by it.
    quoted = sound and _late_quotes(plain) > _late_quotes(read) and fitting(read) >= fitting(plain)
    behind = [value for row in plain[1:] for value in row[1:]]
    return _Style(separator, quoted, quoted or 2 * sum(value.startswith(" ") for value in behind) > len(behind))


def _tried(lines: Iterable[str], separator: str, *, quoted: bool) -> tuple[list[list[str]], bool]:
    """The rows up to what is malformed, and whether nothing is; lines may be cut off within a quote."""
    rows, reader = [], csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=quoted)
    try:
        for row in reader:
            if row:
                rows.append(row)
    except csv.Error as error:
        return rows, "unexpected end" in str(error)
    return rows, True


def _late_quotes(rows: Iterable[Sequence[str]]) -> int:
    """How many values begin with spaces and a quote."""
    return sum(value.startswith(" ") and value.lstrip(" ").startswith('"') for row in rows for value in row)


# Rows between commas, semicolons and bars


class _Feed:
    """Lines for `csv.reader`, counted and bounded by record."""

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
        if len(self.lines) < _LINES_JUDGED:
            self.lines.append(line.text)
        return line.text


def _records(of: Iterator[Line], style: _Style, name: str) -> Iterator[_Record]:
    """Each record that has any values."""
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
            yield _Record(feed.began, feed.number, values, feed.size + blank, feed.lines)
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
        return _STRAY_RETURN
    return f"is no CSV ({reason})"


_STRAY_RETURN = "has a carriage return outside of quotes; lines end in LF or CRLF"


# Rows between tabs

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


def _between_tabs(of: Iterator[Line], name: str, doubts: _Doubts) -> Iterator[_Record]:
    """Each line that is not blank, with those below it that belong to a value in quotes."""
    lines = _Lines(of)
    columns = blank = 0
    while (line := lines.next()) is not None:
        alone = _bare(line.text)
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
        made = _Record(
            line.number,
            below[-1].number if below else line.number,
            [value for value, _ in values],
            blank + sum(each.size for each in (line, *below)),
            [each.text for each in (line, *below)][:_LINES_JUDGED],
        )
        if any(as_is and "\r" in value for value, as_is in values):
            raise UserError(f"{made.where} of {name} {_STRAY_RETURN}.")
        if len(values) == columns and any(as_is and _is_unclosed(value) for value, as_is in values):
            doubts.of(
                "begin a value so",
                made.where,
                f"{made.where} of {name} begins a value with a quote that does not close it: between tabs that is read "
                "as plain text",
            )
        blank = 0
        yield made


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


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
    while _ends_open(_bare(record)):
        taken: list[Line] = []
        size, closed = sum(each.size for each in (line, *below)), False
        while not closed:
            further = lines.next()
            if further is not None:
                taken.append(further)
                size += further.size
                closed = bool(_CLOSES.match(_bare(further.text)))
            goes_on = closed or further is not None and _GOES_ON.match(_bare(further.text))
            if not goes_on or size > text.MOST_ROW_BYTES or len(below) + len(taken) > MOST_LINES_IN_QUOTES:
                lines.give_back(taken)
                return _bare(record), below
        record = "".join([record, *(each.text for each in taken)])
        below += taken
    return _bare(record), below


# What looks amiss


def _refuse_header_again(record: _Record, header: Sequence[str], name: str, doubts: _Doubts) -> None:
    """Refuses a row that holds the names of the columns, as files that stand one behind the other have it."""
    if (first := record.values[0].lstrip("\ufeff").strip()) not in header:
        return
    if sorted([first, *(value.strip() for value in record.values[1:])]) != sorted(header):
        return
    if len(header) > 1:
        raise UserError(
            f"{record.where} of {name} names the columns again ({_names(header)}), as where files stand one behind the "
            "other; remove that line."
        )
    doubts.of(
        "say that again", record.where, f"{record.where} of {name} is the header's {first!r} again, read as a row"
    )


def _refuse_late_quote(record: _Record, style: _Style, name: str) -> None:
    """Refuses a value in quotes behind a space where the first rows had none, and spaces are parts of values."""
    if style.quoted or style.separator == " " or not _late_quotes([record.values]):
        return
    read, sound = _tried(record.lines, style.separator, quoted=True)
    if sound and len(read) == 1 and _late_quotes(read) < _late_quotes([record.values]):
        raise UserError(
            f"{record.where} of {name} has a value in quotes behind a space, where the first rows have none; take the "
            f"space out between {style.separator!r} and the quote."
        )


def _refuse_swallowed_rows(record: _Record, style: _Style, columns: int, name: str, doubts: _Doubts) -> None:
    """Refuses a row of several lines that are rows by themselves; tells of one whose lines may be."""
    if columns == 1:
        doubts.of("are of several lines", record.where, f"{record.where} of {name} are one row, in quotes")
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
        "are such",
        record.where,
        f"{record.where} of {name} are one row, in quotes, and each of them looks like a row by itself: is a quote too "
        "many there?",
    )


def _all_are_rows(lines: Sequence[str], style: _Style, columns: int) -> bool:
    """Whether each line splits into as many values as there are columns, and nearly all look as if it were meant."""
    if any('"' in line.replace('""', "") for line in lines[1:-1]):  # several values in quotes
        return False
    meant = 0
    for line in lines:
        values = _bare(line).split(style.separator)
        if len(values) != columns:
            return False
        # Prose has a space behind its commas, and its lines may end in one.
        behind = style.spaced or not any(value.startswith(" ") for value in values[1:])
        meant += behind and (columns > 2 or all(value.strip() for value in values))
    return 4 * meant >= 3 * len(lines)


def _advice(record: _Record, style: _Style) -> str:
    if style.separator != "\t" or not any('"' in value for value in record.values):
        return ""
    return (
        "; between tabs a quote is plain text but around a whole value, which holds no tab if it has several lines "
        "(JSON lines hold any)"
    )


def _header(values: list[str], name: str) -> list[str]:
    names = [value.strip() for value in values]
    if not names[0] and len(names) > 1:
        names[0] = "Unnamed: 0"  # the index that pandas writes without a name, by the name that pandas reads it under
    for number, column in enumerate(names, start=1):
        if not column:
            raise UserError(
                f"column {number} of {name} has no name in the header ({_names(names)}); name it or remove it."
            )
    return column_names(names, name)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(column[:40] for column in columns[:8]) + (", ..." if len(columns) > 8 else "")
