"""Rows of the formats that are text, one after the other: plain lines, JSON lines, JSON, CSV and its kin."""

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jpeft.errors import UserError
from jpeft.files import JsonParser, json_kind

MOST_ROW_BYTES = 16 * 2**20  # one row; a book has one or two million
MOST_JSON_BYTES = 512 * 2**20  # a list of rows, which has to be in memory as a whole; JSON lines have not
_SEPARATORS = ",;\t|"
_LINES_LOOKED_AT = 50  # for the separator
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_JSON = JsonParser(missing=True)


@runtime_checkable
class Readable(Protocol):
    """An open file of bytes, of whatever class."""

    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self, size: int = -1, /) -> bytes: ...


class Row(NamedTuple):
    """One row of a file.

    Attributes:
      where: `line 3` or `row 3`, for messages.
      fields: by column, typed as the file has them; missing values (null, NaN, infinities) are None.
      size: bytes of the file since the row before.
    """

    where: str
    fields: dict[str, Any]
    size: int


class Line(NamedTuple):
    """One line of a file; `text` has its ending."""

    number: int
    text: str
    size: int


def lines(file: Readable, name: str) -> Iterator[Line]:
    """Lines that end in LF or CRLF; a byte order mark before the first is left out.

    Raises:
      UserError: a line is no UTF-8, holds NUL bytes, or is longer than `MOST_ROW_BYTES`.
    """
    number = 0
    while line := file.readline(MOST_ROW_BYTES + 1):
        number += 1
        where = f"line {number} of {name}"
        if len(line) > MOST_ROW_BYTES:
            raise UserError(f"{where} has more than {MOST_ROW_BYTES:,} bytes; a row may have so many at most.")
        yield Line(number, _decoded(line, where, first=number == 1), len(line))


def _decoded(data: bytes, where: str, *, first: bool) -> str:
    if first and data.startswith(_UTF_16):
        raise UserError(f"{where} begins as UTF-16 does; save the file as UTF-8.")
    if b"\0" in data:
        raise UserError(f"{where} holds NUL bytes: it is no text in UTF-8 (UTF-16, or no text at all).")
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {data[error.start]:#04x} at {error.start}); save the file as UTF-8."
        ) from None


def plain_rows(of: Iterable[Line]) -> Iterator[Row]:
    """Each line as `input`, blank ones too."""
    for line in of:
        yield Row(f"line {line.number}", {"input": line.text.removesuffix("\n").removesuffix("\r")}, line.size)


def json_line_rows(of: Iterable[Line], name: str) -> Iterator[Row]:
    """An object a line; blank lines are no rows. Raises `UserError`: a line is anything else."""
    return _no_lone_table(_json_line_rows(of, name), name)


def _json_line_rows(of: Iterable[Line], name: str) -> Iterator[Row]:
    size = 0
    for line in of:
        size += line.size
        if line.text.strip():
            where = f"line {line.number}"
            yield Row(where, _fields(_JSON.parse(line.text.rstrip(), f"{where} of {name}"), f"{where} of {name}"), size)
            size = 0


def json_rows(file: Readable, name: str) -> Iterator[Row]:
    """A list of objects; or objects one after the other, on a line each or spread over several.

    Raises:
      UserError: anything else, or more than `MOST_JSON_BYTES`.
    """
    data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise UserError(f"{name} has more than {MOST_JSON_BYTES:,} bytes; write one row a line instead, as .jsonl.")
    text = _decoded(data, f"the text of {name}", first=True)
    del data
    return _no_lone_table(_json_rows(text, name), name)


_SPACE = re.compile(r"[ \t\r\n]*")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "it matches nothing, too"
    return found.end()


def _json_rows(text: str, name: str) -> Iterator[Row]:
    at = _after_space(text, 0)
    in_list = text.startswith("[", at)
    at, before = (_after_space(text, at + 1) if in_list else at), 0
    for number in itertools.count(1):
        where = f"row {number} of {name}"
        if at == len(text):
            if in_list:
                raise UserError(f"{name} ends within its list after {number - 1} rows; copy or write it again.")
            return
        if in_list and text[at] == "]":
            if _after_space(text, at + 1) < len(text):
                raise UserError(f"{name} goes on after the end of its list; a file holds one list of rows.")
            return
        value, end = _JSON.parse_at(text, at, where)
        if end - at > MOST_ROW_BYTES:
            raise UserError(f"{where} has more than {MOST_ROW_BYTES:,} bytes; a row may have so many at most.")
        at = _after_space(text, end)
        if in_list and at < len(text) and text[at] != "]":
            if text[at] != ",":
                raise UserError(f"{where} is not followed by a comma (line {_line_of(text, at)}).")
            at = _after_space(text, at + 1)
            if text.startswith("]", at):
                raise UserError(f"{where} is followed by a comma and no row (line {_line_of(text, at)}).")
        yield Row(f"row {number}", _fields(value, where), at - before)
        before = at


def _line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _fields(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        shown = ascii(value) if not isinstance(value, list | str) else ascii(value[:20])
        raise UserError(f"{where} is {shown[:40]}; expected an object with the columns, {{...}}.")
    if all(key == key.strip() for key in value):
        return value
    stripped = {key.strip(): field for key, field in value.items()}
    if len(stripped) < len(value):
        raise UserError(f"{where} has two columns whose names differ by white space only; rename one.")
    return stripped


def _no_lone_table(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows, unless there is a single one and it is a whole table: `{"input": {"0": ...}}`, `{"data": [...]}`."""
    first = next(rows, None)
    if first is None:
        return
    if first.fields and all(isinstance(value, dict | list) for value in first.fields.values()):
        second = next(rows, None)
        if second is None:
            column, value = next(iter(first.fields.items()))
            raise UserError(
                f"{name} holds one object, whose {ascii(column)[:40]} is {json_kind(value)}: a table by columns, or "
                "rows wrapped; expected an object for each row, in a list or one a line (of pandas: to_json(path, "
                "orient='records', lines=True))."
            )
        yield first
        yield second
    else:
        yield first
    yield from rows


def csv_rows(of: Iterator[Line], name: str, *, tabs: bool = False) -> Iterator[Row]:
    """Rows under a header; the separator is found: comma, semicolon, tab or bar. White space around names goes.

    Args:
      tabs: whether the file's ending says that tabs separate.

    Raises:
      UserError: two columns of one name, a column without, a row of more or fewer values, a misplaced quote.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MOST_ROW_BYTES))
    looked_at = list(itertools.islice(of, _LINES_LOOKED_AT))
    given = (
        re.fullmatch(r"sep=(.)\r?\n?", looked_at[0].text) if looked_at else None
    )  # a line that Excel writes and reads
    if given:
        del looked_at[0]
    separator = given[1] if given else _separator([line.text for line in looked_at], tabs=tabs)
    feed = _Feed(itertools.chain(looked_at, of), name)
    header: list[str] | None = None
    for where, values, size in _records(feed, separator, name):
        if header is None:
            header = _header(values, name)
        elif len(values) != len(header):
            raise UserError(
                f"{where} of {name} has {len(values)} values, the header names {len(header)} columns "
                f"({_names(header)}), separated by {separator!r}."
            )
        else:
            yield Row(where, dict(zip(header, values, strict=True)), size)


class _Feed:
    """Lines for `csv.reader`, counted and bounded by record."""

    def __init__(self, of: Iterator[Line], name: str):
        self._of, self._name = of, name
        self.began = self.number = self.size = 0

    def next_record(self) -> None:
        self.began, self.size = 0, 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._of)
        self.number = line.number
        self.began = self.began or line.number
        self.size += line.size
        if self.size > MOST_ROW_BYTES:
            raise UserError(
                f"the row that begins in line {self.began} of {self._name} has more than {MOST_ROW_BYTES:,} bytes; is "
                "a quote opened there and not closed?"
            )
        return line.text


def _records(feed: _Feed, separator: str, name: str) -> Iterator[tuple[str, list[str], int]]:
    """`(where, values, bytes)` of each record that has any."""
    records = csv.reader(feed, delimiter=separator, strict=True)
    blank = 0
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            where = (
                f"line {feed.number}"
                if feed.began in (0, feed.number)
                else f"the row of lines {feed.began} to {feed.number}"
            )
            raise UserError(f"{where} of {name} {_csv_reason(str(error), separator)}.") from None
        if values:
            yield f"line {feed.began}", values, feed.size + blank
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
        return "has a carriage return outside of quotes; lines end in LF or CRLF"
    return f"is no CSV ({reason})"


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


def _header(values: list[str], name: str) -> list[str]:
    names = [value.strip() for value in values]
    if not names[0] and len(names) > 1:
        names[0] = "Unnamed: 0"  # the index that pandas writes without a name, by the name that pandas reads it under
    for number, column in enumerate(names, start=1):
        if not column:
            raise UserError(
                f"column {number} of {name} has no name in the header ({_names(names)}); name it or remove it."
            )
    column, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{name}: two columns have the same name, {column!r}; rename one.")
    return names


def _names(columns: list[str]) -> str:
    return ", ".join(column[:40] for column in columns[:8]) + (", ..." if len(columns) > 8 else "")


def is_object(line: bytes) -> bool:
    """Whether a line is a JSON object, which tells JSON lines from plain ones."""
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False
