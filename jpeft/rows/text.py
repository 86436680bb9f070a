"""Reads rows of plain lines, JSON lines and JSON, one at a time."""

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jpeft.errors import UserError
from jpeft.files import JsonParser, json_kind

MOST_ROW_BYTES = 16 * 2**20  # for comparison, a book has one or two million
MOST_COLUMNS = 10_000
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_JSON = JsonParser(missing=True, unique=True)


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self, size: int = -1, /) -> bytes: ...


class FileRow(NamedTuple):
    """One row of a file.

    Attributes:
      where: `line 3` or `row 3`, for messages.
      fields: values by column, with the file's types; missing values (null, NaN, infinities) are None.
      size: bytes of the file since the previous row.
    """

    where: str
    fields: dict[str, Any]
    size: int


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      text: with the line ending.
      size: in bytes.
    """

    number: int
    text: str
    size: int


def bare(line: str) -> str:
    """Returns a line without its line ending."""
    return line.removesuffix("\n").removesuffix("\r")


def beginning(file: Readable) -> list[bytes]:
    """Reads lines up to and including the first that is not blank, at most `MOST_ROW_BYTES` of blank ones."""
    read: list[bytes] = []
    size = 0
    while size <= MOST_ROW_BYTES and (line := file.readline(MOST_ROW_BYTES + 1)):
        read.append(line)
        size += len(line)
        if line.removeprefix(codecs.BOM_UTF8).strip():
            break
    return read


def lines(file: Readable, name: str) -> Iterator[Line]:
    """Yields lines that end in LF or CRLF, without a leading byte order mark.

    Raises:
      UserError: a line is not UTF-8, contains NUL bytes, or is longer than `MOST_ROW_BYTES`.
    """
    number = 0
    while line := file.readline(MOST_ROW_BYTES + 1):
        number += 1
        where = f"line {number} of {name}"
        if len(line) > MOST_ROW_BYTES:
            raise UserError(f"{where} has more than {MOST_ROW_BYTES:,} bytes, the most that a row may have.")
        yield Line(number, _decoded(line, where, first=number == 1), len(line))


def _refuse_other_encodings(data: bytes, where: str, *, first: bool) -> None:
    """Raises `UserError` for UTF-16 and binary data. `first` says whether the file begins with it."""
    if first and data.startswith(_UTF_16):
        raise UserError(f"{where} begins as UTF-16 does; save the file as UTF-8.")
    if b"\0" in data:
        raise UserError(f"{where} holds NUL bytes: it is not UTF-8 text but UTF-16, or no text; save it as UTF-8.")


def _decoded(data: bytes, where: str, *, first: bool) -> str:
    _refuse_other_encodings(data, where, first=first)
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {data[error.start]:#04x} at {error.start}); save the file as UTF-8."
        ) from None


def plain_rows(of: Iterable[Line]) -> Iterator[FileRow]:
    """Yields each line, also a blank one, as the column `input`."""
    for line in of:
        yield FileRow(f"line {line.number}", {"input": bare(line.text)}, line.size)


def json_line_rows(of: Iterable[Line], name: str) -> Iterator[FileRow]:
    """Yields the object in each line that is not blank. Raises `UserError` if a line is not a JSON object."""
    return _no_lone_table(_json_line_rows(of, name), name)


def _json_line_rows(of: Iterable[Line], name: str) -> Iterator[FileRow]:
    size, first = 0, True
    for line in of:
        size += line.size
        if line.text.strip():
            where = f"line {line.number}"
            named, text = f"{where} of {name}", line.text.rstrip()
            begun = text.lstrip()
            if first and (begun == "{" or begun.startswith("[") and ("{" in begun or not begun.endswith("]"))):
                raise UserError(
                    f"{named} is not one whole JSON object, as every line of JSON lines is; a list of objects, or "
                    "objects over several lines, are read from a file whose name ends in .json."
                )
            yield FileRow(where, _fields(_JSON.parse(text, named), named), size)
            size, first = 0, False


def json_rows(file: Readable, name: str) -> Iterator[FileRow]:
    """Yields the objects in a JSON list, or objects that follow each other, over one or several lines each.

    The file is read in pieces, never as a whole.

    Raises:
      UserError: the file contains anything else.
    """
    return _no_lone_table(_json_rows(_JsonText(file, name), name), name)


class _JsonText:
    """An incremental reader of JSON that keeps only the current value in memory."""

    def __init__(self, file: Readable, name: str):
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._lines = "", 0, 1
        self._begun = self._ended = False
        self.size = 0  # bytes consumed so far

    def next(self) -> str:
        """Skips white space and returns the next character, without consuming it; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None, "the pattern matches the empty text"
            self._go_to(found.end())
            if self._at < len(self._text) or not self._more(_PIECE):
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Consumes one character, which `next` has returned."""
        self._go_to(self._at + 1)

    @property
    def line(self) -> int:
        """Number of the line of the next character."""
        return self._lines + self._text.count("\n", 0, self._at)

    def value(self, where: str) -> Any:
        """Consumes and returns the next value. Raises `UserError` if it is malformed or too long for a row."""
        piece = _PIECE
        while True:
            try:
                value, end = _JSON.parse_at(self._text, self._at, where)
            except UserError as error:
                # The value may merely be incomplete: read on, at most to the maximum length of a row.
                if len(self._text) - self._at > MOST_ROW_BYTES:
                    reason = str(error).removesuffix(".")
                    raise UserError(f"{reason}; a row may have {MOST_ROW_BYTES:,} characters at most.") from None
                if not self._more(piece):
                    raise
                piece *= 2
                continue
            if end - self._at > MOST_ROW_BYTES:
                raise UserError(f"{where} has more than {MOST_ROW_BYTES:,} characters, the most that a row may have.")
            self._go_to(end)
            return value

    def _go_to(self, at: int) -> None:
        passed = self._text[self._at : at]
        self.size += len(passed) if passed.isascii() else len(passed.encode())
        self._at = at

    def _more(self, size: int) -> bool:
        """Reads another piece and discards the consumed text. Returns False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(size)
        where = f"the text of {self._name}"
        _refuse_other_encodings(data, where, first=not self._begun)
        self._begun, self._ended = True, not data
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8."
            ) from None
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + text, 0
        return not self._ended


_SPACE = re.compile(r"[ \t\r\n]*")
_PIECE = 2**18


def _json_rows(text: _JsonText, name: str) -> Iterator[FileRow]:
    in_list = text.next() == "["
    if in_list:
        text.skip()
    before = 0
    for number in itertools.count(1):
        where = f"row {number} of {name}"
        begins = text.next()
        if not begins:
            if in_list:
                raise UserError(f"{name} ends within its list after {number - 1} rows; copy or write it again.")
            return
        if in_list and begins == "]":
            text.skip()
            if text.next():
                raise UserError(f"{name} goes on after the end of its list; a file holds one list of rows.")
            return
        value = text.value(where)
        follows = text.next()
        if in_list and follows not in ("", "]"):
            if follows != ",":
                raise UserError(f"{where} is not followed by a comma (line {text.line}).")
            text.skip()
            if text.next() == "]":
                raise UserError(f"{where} is followed by a comma and no row (line {text.line}).")
        yield FileRow(f"row {number}", _fields(value, where), text.size - before)
        before = text.size


def _fields(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        shown = ascii(value) if not isinstance(value, list | str) else ascii(value[:20])
        raise UserError(f"{where} is {shown[:40]}; expected an object with the columns, {{...}}.")
    if len(value) > MOST_COLUMNS:
        raise UserError(f"{where} has {len(value):,} columns; expected {MOST_COLUMNS:,} at most.")
    if all(key == key.strip() for key in value):
        return value
    stripped = {key.strip(): field for key, field in value.items()}
    if len(stripped) < len(value):
        raise UserError(f"{where} has two columns whose names differ by white space only; rename one.")
    return stripped


def _no_lone_table(rows: Iterator[FileRow], name: str) -> Iterator[FileRow]:
    """Passes rows on, but refuses a single row that is a whole table: `{"input": {"0": ...}}` or `{"data": [...]}`."""
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


UNNAMED = "Unnamed: 0"  # pandas writes its index as a first column without a name, and reads it back under this one


def column_names(given: list[str], name: str) -> list[str]:
    """Strips the names of a file's columns.

    Raises:
      UserError: there are more than `MOST_COLUMNS`, or two names are equal.
    """
    if len(given) > MOST_COLUMNS:
        raise UserError(f"{name} has {len(given):,} columns; expected {MOST_COLUMNS:,} at most.")
    names = [column.strip() for column in given]
    column, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{name}: two columns have the same name, {column!r}; rename one.")
    return names


def is_object(line: bytes) -> bool:
    """Whether a line is a JSON object, to distinguish JSON lines from plain text."""
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False
